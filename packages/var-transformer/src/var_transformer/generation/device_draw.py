"""From logits to token ids by operators of a graph: the filters and draws of ``filters`` on an NPU.

What ``filters`` sums in float64 is summed in integers here: an NPU's vector cores have no float64,
and sums of integers are the same in whatever order a device adds them. Given the same
probabilities, the ids are NumPy's. Only the exponentials differ, by a rounding: so an id may differ
where a random number falls that close to an edge between two tokens.
"""

import math

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint, nn, ops
from var_tokenizer import layout

from var_transformer.generation.sampler import ScaleSettings
from var_transformer.model import operators as fast

_HIGH = 30  # bits of a probability in the first of two integers: sums stay below 2**31


def draw_settings(settings: ScaleSettings, vocab_size: int) -> np.ndarray:
    """What ``DeviceDraw`` reads of a scale's settings, (5,) float32.

    The weights of the conditional and unconditional logits, the temperature, the share of
    probability that top-p drops at most, and the rank of the least likely token that top-k keeps.
    """
    strength = np.float32(settings.strength)
    dropped = 1 - settings.top_p if 0 < settings.top_p < 1 else 0.0
    rank = vocab_size - settings.top_k if settings.top_k else 0
    values = (1 + strength, strength, settings.temperature, dropped, rank)
    return np.array(values, np.float32)


class DeviceDraw(nn.Cell):
    """Guidance, temperature, top-k, top-p and the draw, as ``filters`` defines them.

    ``f(logits (B or 2B, l, V), uniform (B, l, 1) float64 in [0, 1), settings (5)) -> ids (B, l)``,
    int32; the second half of the logits, if any, is unconditional, and settings are those of
    ``draw_settings``. Where probabilities are NaN the id is V. All settings are data, so that one
    graph serves them all.
    """

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        low = 30 - (vocab_size - 1).bit_length()  # bits: V such integers stay below 2**31
        self.unit, self.high, self.low = 2**low, float(2**_HIGH), float(2**low)
        self.columns, self.ranked = fast.Columns(), fast.Ranked()
        self.cumulative_sum, self.softmax = fast.CumulativeSum(), fast.Softmax()
        self.parts = layout.parts()
        self.last = Tensor(np.array([vocab_size - 1], np.int32))
        self.position_v = Tensor(np.arange(vocab_size, dtype=np.float32))
        self.nothing = -math.inf

    def construct(self, logits_blv: Tensor, uniform_bl1: Tensor, settings_5: Tensor) -> Tensor:
        conditional, unconditional, temperature, dropped, rank = self.parts(settings_5, 1, 0)
        logits_blv, b = logits_blv.astype(ms.float32), uniform_bl1.shape[0]
        if logits_blv.shape[0] != b:
            halves = self.parts(logits_blv, b, 0)
            logits_blv = conditional * halves[0] - unconditional * halves[1]
        logits_blv = mint.div(logits_blv, temperature)
        ranked_blv, tokens_blv = self.filtered(logits_blv, dropped, rank.astype(ms.int32))
        return self.draw(ranked_blv, tokens_blv, uniform_bl1)

    def filtered(self, logits_blv: Tensor, dropped: Tensor, rank: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities after the filters, ascending, and the token of each."""
        ranked_blv, tokens_blv = self.ranked(logits_blv)
        kth_bl1 = self.columns(ranked_blv, rank)
        ranked_blv = ops.masked_fill(ranked_blv, ranked_blv < kth_bl1, self.nothing)
        reached_blv = self.cumulative_sum(self.softmax(ranked_blv))
        count_bl1 = self.count(reached_blv <= dropped)
        # the likeliest token always stays
        least_bl1 = ops.minimum(count_bl1, self.vocab_size - 1)
        ranked_blv = ops.masked_fill(ranked_blv, self.position_v < least_bl1, self.nothing)
        return self.softmax(ranked_blv), tokens_blv

    def draw(self, ranked_blv: Tensor, tokens_blv: Tensor, uniform_bl1: Tensor) -> Tensor:
        """One token for each row by inverting the cumulative distribution, (B, l) int32.

        ranked_blv: probabilities of the tokens ``tokens_blv``.
        """
        # in the order of the vocabulary; every entry is overwritten
        p_blv = mint.scatter(ranked_blv, 2, tokens_blv, ranked_blv)
        scaled_blv = p_blv * self.high
        high_blv = scaled_blv.astype(ms.int32)
        rest_blv = (scaled_blv - high_blv.astype(ms.float32)) * self.low
        low_blv = (rest_blv + 0.5).astype(ms.int32)
        reached_blv = self.cumulative_sum(high_blv).astype(ms.int64) * self.unit
        reached_blv = reached_blv + self.cumulative_sum(low_blv)
        total_bl1 = self.columns(reached_blv, self.last).astype(ms.float64)
        threshold_bl1 = (uniform_bl1 * total_bl1).astype(ms.int64)
        ids_bl1 = self.count(reached_blv <= threshold_bl1)
        # NaN is not above 0
        likeliest_bl1 = self.columns(ranked_blv, self.last)
        ids_bl1 = ops.select(likeliest_bl1 > 0, ids_bl1, float(self.vocab_size))
        return ids_bl1.astype(ms.int32).reshape(ids_bl1.shape[:2])

    def count(self, true_blv: Tensor) -> Tensor:
        """How many of each row are true, (B, l, 1) float32."""
        return mint.sum(true_blv, -1, True, dtype=ms.float32)
