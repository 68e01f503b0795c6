"""Next-scale attention composed of plain operators, for any device and dtype."""

from mindspore import Tensor, ops
from var_tokenizer import ScaleSchedule

from var_transformer.attention.base import NextScaleAttention, Place, PlainSegment
from var_transformer.attention.block_causal_mask import block_causal_mask
from var_transformer.attention.cache import KeysValues
from var_transformer.attention.segments import Plan, cut, cut_at, scores_and

_HIDDEN = -1e9  # added to the score of a key that a query must not see
_LAUNCH = 10_000  # in scores; fitted to segments of d16 on two cores (benchmarks/attention.py)


class PortableAttention(NextScaleAttention):
    """Heads apart (B, H, L, d), scores as batched matrix products.

    The cache grows by concatenation. Writing in place with plain operators takes longer on the CPU:
    a scattered write and a strided read, 7.2 ms against 3.5 at the last scale of d16.
    """

    axis = 2

    def __init__(self, schedule: ScaleSchedule, heads: int, unit_length: bool) -> None:
        def segments(scales: ScaleSchedule) -> Plan:
            return cut(scales, scores_and(_LAUNCH))

        cuts = {
            "cheapest": segments,
            "segments": segments,
            "masked": lambda scales: cut_at(scales, len(scales)),
        }
        super().__init__(schedule, heads, unit_length, cuts)
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.mix = ops.BatchMatMul()
        self.softmax = ops.Softmax(-1)

    def empty_cache(self, batch: int) -> KeysValues:
        return ()

    def heads_of(
        self, q_blc: Tensor, k_blc: Tensor, v_blc: Tensor, score_scale: Tensor | float
    ) -> tuple[Tensor, Tensor, Tensor]:
        q_bhld, k_bhld, v_bhld = self._apart(q_blc), self._apart(k_blc), self._apart(v_blc)
        if self.unit_length is not None:
            q_bhld, k_bhld = self.unit_length(q_bhld), self.unit_length(k_bhld)
        return q_bhld * score_scale, k_bhld, v_bhld

    def _apart(self, x_blc: Tensor) -> Tensor:
        b, length, c = x_blc.shape
        return x_blc.reshape(b, length, self.heads, c // self.heads).transpose(0, 2, 1, 3)

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, segment: PlainSegment
    ) -> Tensor:
        _, end, masked, _ = segment
        scores_bhll = self.scores(queries, keys)
        if masked:
            scores_bhll = scores_bhll + block_causal_mask(self.scales, end, 0.0, _HIDDEN)
        return self.mix(self.softmax(scores_bhll), values)

    def extend(
        self, queries: Tensor, keys: Tensor, values: Tensor, k: Place, past: KeysValues
    ) -> tuple[Tensor, KeysValues]:
        if len(past) > 0:
            keys, values = ops.concat((past[0], keys), 2), ops.concat((past[1], values), 2)
        return self.mix(self.softmax(self.scores(queries, keys)), values), (keys, values)

    def merged(self, mixed: Tensor) -> Tensor:
        b, heads, length, d = mixed.shape
        return mixed.transpose(0, 2, 1, 3).reshape(b, length, heads * d)
