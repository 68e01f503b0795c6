"""Next-scale attention composed of plain operators, for any device and dtype."""

import numpy as np
from mindspore import Tensor, nn, ops
from var_tokenizer import ScaleSchedule

from var_transformer.attention.checks import check_tokens
from var_transformer.ops import UnitLength

_HIDDEN = -1e9  # added to the score of a key that a query must not see


class PortableAttention(nn.Cell):
    """softmax(scale q k^T) v; the whole sequence under a mask, or one scale over its prefix.

    The cache grows by concatenation: with composed operators a write in place costs the CPU
    more (a scattered write and a strided read, 7.2 ms against 3.5 at the last scale of d16).
    """

    def __init__(self, schedule: ScaleSchedule, heads: int, unit_length: bool) -> None:
        super().__init__()
        self.heads = heads
        self.tokens = schedule.tokens
        self.length = schedule.length
        self.mask_ll = Tensor(np.where(schedule.visible, 0, _HIDDEN).astype(np.float32))
        self.unit_length = UnitLength() if unit_length else None
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.mix = ops.BatchMatMul()
        self.softmax = ops.Softmax(-1)

    def empty_cache(self, batch: int) -> tuple[Tensor, ...]:
        """The cache of one block before the first scale."""
        return ()

    def construct(
        self,
        q_blc: Tensor,
        k_blc: Tensor,
        v_blc: Tensor,
        scale: Tensor | float,
        index: int | None,
        past: tuple[Tensor, ...],
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Mixed values (B, L, C), and the cache of this block one scale later.

        scale: of the scores, one number or (1, H, 1, 1). index: the scale that the tokens are,
        or None for all at once. past: cache of this block; empty for all at once.
        """
        check_tokens(q_blc.shape[1], index, self.tokens)
        q_bhld, k_bhld, v_bhld = self._heads(q_blc), self._heads(k_blc), self._heads(v_blc)
        if self.unit_length is not None:
            q_bhld, k_bhld = self.unit_length(q_bhld), self.unit_length(k_bhld)
        q_bhld = q_bhld * scale
        if len(past) > 0:
            k_bhld = ops.concat((past[0], k_bhld), 2)
            v_bhld = ops.concat((past[1], v_bhld), 2)
        scores_bhll = self.scores(q_bhld, k_bhld)
        if index is None:
            scores_bhll = scores_bhll + self.mask_ll
        mixed_bhld = self.mix(self.softmax(scores_bhll), v_bhld)
        return mixed_bhld.transpose(0, 2, 1, 3).reshape(*q_blc.shape), (k_bhld, v_bhld)

    def _heads(self, x_blc: Tensor) -> Tensor:
        b, length, c = x_blc.shape
        return x_blc.reshape(b, length, self.heads, c // self.heads).transpose(0, 2, 1, 3)
