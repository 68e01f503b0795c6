"""Next-scale attention with Ascend's fused operators.

Training runs ``ops.flash_attention_score``, generation ``ops.fused_infer_attention_score``:

| operator | layouts | length of the keys in a longer buffer | gradient |
| --- | --- | --- | --- |
| flash_attention_score | BSH BNSD SBH BSND TND | no: the prefix would be copied out | yes |
| prompt_flash_attention | BSH BNSD | yes | no |
| fused_infer_attention_score | BSH BNSD BSND | yes | no |

So generation reads its keys in place, in the layout that the projection leaves them in: nothing is
transposed, copied or masked. If the fused operators of ``ascend_c`` are built, one of them
splits the projection's result, normalizes it and writes the cache, in generation.
"""

from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from mindspore.ops import auto_generate, constexpr
from var_tokenizer import ScaleSchedule
from var_tokenizer.common import InputError

from var_transformer import ascend_c
from var_transformer.attention.base import (
    NextScaleAttention,
    Place,
    PlainSegment,
    check_tokens,
    span_of,
)
from var_transformer.attention.block_causal_mask import block_causal_mask
from var_transformer.attention.cache import KeysValues
from var_transformer.attention.devices import DEVICES
from var_transformer.attention.segments import (
    cut,
    cut_at,
    launch_scores,
    scores_and,
    training_seconds,
)

DTYPES = (ms.float16, ms.bfloat16)
_ALL = 2**31 - 1  # next_tokens of a call without a band
_BATCH = 96  # images on a device in the published training of d16; segments are cut for it


class AscendAttention(NextScaleAttention):
    """Heads in place, (B, L, H, d) (BSND); float16 or bfloat16; head width a multiple of 16.

    The cache of a block is two buffers (B, L, H, d), written in place. Raises InputError for
    another dtype or head width.
    """

    axis = 1

    def __init__(
        self,
        schedule: ScaleSchedule,
        heads: int,
        head_width: int,
        unit_length: bool,
        dtype: ms.Type,
    ) -> None:
        if dtype not in DTYPES:
            raise InputError(
                f"attention dtype is {dtype}; Ascend's fused operators take Float16 or BFloat16"
            )
        if head_width % 16 or not 16 <= head_width <= 512:
            raise InputError(
                f"head width is {head_width}; Ascend's fused operators take multiples of 16 "
                "up to 512 (products of dtype float32 do without them)"
            )
        device, every = DEVICES["ascend-910b"], _BATCH * heads
        seconds = training_seconds(device, every, head_width)
        few_scores = scores_and(launch_scores(device, every, head_width))
        cuts = {
            "cheapest": lambda scales: cut(scales, seconds, banded=True),
            "segments": lambda scales: cut(scales, few_scores, banded=True),
            "banded": lambda scales: cut_at(scales, len(scales), banded=True),
            "masked": lambda scales: cut_at(scales, len(scales)),
        }
        super().__init__(schedule, heads, unit_length, cuts)
        self.head_width = head_width
        self.dtype = dtype
        self.write = auto_generate.ReshapeAndCache()
        self.fused_write: Any = None  # an operator of ``ascend_c``
        fused = ascend_c.operators()
        if fused is not None and unit_length and ascend_c.takes_heads(heads, head_width):
            self.fused_write = fused.var_cached_heads
        self.scale_dtype = dtype if self.fused_write is None else ms.float32

    def empty_cache(self, batch: int) -> KeysValues:
        shape = (batch, self.offsets[-1], self.heads, self.head_width)
        return ops.zeros(shape, self.dtype), ops.zeros(shape, self.dtype)

    def heads_of(
        self, q_blc: Tensor, k_blc: Tensor, v_blc: Tensor, score_scale: Tensor | float
    ) -> tuple[Tensor, Tensor, Tensor]:
        q_blhd, k_blhd, v_blhd = self._apart(q_blc), self._apart(k_blc), self._apart(v_blc)
        return *self._scaled(q_blhd, k_blhd, score_scale), v_blhd

    def _apart(self, x_blc: Tensor) -> Tensor:
        if len(x_blc.shape) == 4:
            return x_blc
        b, length, c = x_blc.shape
        return x_blc.astype(self.dtype).reshape(b, length, c // self.head_width, self.head_width)

    def _scaled(
        self, q_blhd: Tensor, k_blhd: Tensor, score_scale: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        """Queries and keys as they are multiplied: the scale of scores is the queries'."""
        if self.unit_length is None:
            return q_blhd * score_scale, k_blhd
        scale_11h1 = ops.reshape(score_scale, (1, 1, -1, 1)).astype(self.dtype)
        return self.unit_length(q_blhd) * scale_11h1, self.unit_length(k_blhd)

    def attend(
        self, queries: Tensor, keys: Tensor, values: Tensor, segment: PlainSegment
    ) -> Tensor:
        _, end, masked, reach = segment
        # True where the operator masks
        mask_ll = block_causal_mask(self.scales, end, False, True) if masked else None
        # a band: keys farther ahead than the longest scale are not multiplied at all
        return ops.flash_attention_score(
            queries,
            keys,
            values,
            self.heads,
            attn_mask=mask_ll,
            next_tokens=reach if masked else _ALL,
            input_layout="BSND",
            sparse_mode=0,
        )

    def projected(
        self, qkv_bl3c: Tensor, score_scale: Tensor | float, k: Place | None, past: KeysValues
    ) -> tuple[Tensor, KeysValues]:
        if self.fused_write is None or k is None:
            # views on an Ascend: the projection's result is not copied
            q_blhd, k_blhd, v_blhd = self.parts(self._apart(qkv_bl3c), self.heads, 2)
            heads = self.heads_of(q_blhd, k_blhd, v_blhd, score_scale)
            mixed_blc, grown = self.of_heads(*heads, qkv_bl3c.shape[1], k, past)
            return mixed_blc.astype(qkv_bl3c.dtype), grown
        b, length, _ = qkv_bl3c.shape
        check_tokens(length, k, self.offsets)
        check_cache(past[0].shape, (b, self.offsets[-1], self.heads, self.head_width))
        begin, _ = span_of(k, self.offsets)
        taken_bl3c, scale_h = qkv_bl3c, ops.reshape(score_scale, (-1,)).astype(ms.float32)
        if qkv_bl3c.dtype != self.dtype:  # the operator takes float32 or its own half type
            taken_bl3c = qkv_bl3c.astype(ms.float32)
        q_blhd = self.fused_write(taken_bl3c, scale_h, past[0], past[1], begin)
        mixed_blhd = self._over_cache(q_blhd, k, past)
        return self.merged(mixed_blhd).astype(qkv_bl3c.dtype), ()

    def extend(
        self, queries: Tensor, keys: Tensor, values: Tensor, k: Place, past: KeysValues
    ) -> tuple[Tensor, KeysValues]:
        b, length, heads, d = keys.shape
        check_cache(past[0].shape, (b, self.offsets[-1], heads, d))
        # the operator takes images for the blocks of a paged cache
        begin, end = span_of(k, self.offsets)
        slots = _slots(b, self.offsets[-1], begin, end)
        flat = (b, length, heads * d)
        written = self.write(keys.reshape(flat), values.reshape(flat), past[0], past[1], slots)
        # a graph orders operators only by their data: depend puts the write first
        return self._over_cache(ops.depend(queries, written), k, past), ()

    def _over_cache(self, queries: Tensor, k: Place, past: KeysValues) -> Tensor:
        """The queries of scale k over the cache, filled up to that scale."""
        _, end = span_of(k, self.offsets)
        return ops.fused_infer_attention_score(
            queries,
            past[0],
            past[1],
            actual_seq_lengths_kv=_lengths(queries.shape[0], end),
            num_heads=self.heads,
            scale=1.0,
            input_layout="BSND",
            inner_precise=0,  # sums of float16 in float32
        )[0]

    def merged(self, mixed: Tensor) -> Tensor:
        b, length, heads, d = mixed.shape
        return mixed.reshape(b, length, heads * d)


@constexpr
def check_cache(shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    """Raises InputError for a cache of another batch, schedule or model.

    MindSpore's shape inference does not notice.
    """
    if shape != expected:
        raise InputError(f"cache has shape {shape}; expected {expected}: images, tokens, heads, d")


@constexpr
def _slots(batch: int, length: int, begin: int, end: int) -> Tensor:
    """(B * (end - begin),) int32: where the rows of one scale are in the cache of all scales."""
    rows = np.arange(batch)[:, None] * length + np.arange(begin, end)[None, :]
    return Tensor(rows.reshape(-1).astype(np.int32))


@constexpr
def _lengths(batch: int, end: int) -> Tensor:
    """(B,) int64: how many rows of each image's cache are filled."""
    return Tensor(np.full(batch, end, np.int64))
