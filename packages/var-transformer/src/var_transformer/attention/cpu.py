"""Next-scale attention by the C++ kernels (``cpp/attention.cpp``): float32, on a CPU."""

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.ops import constexpr
from var_tokenizer import ScaleSchedule
from var_tokenizer.common import KernelLibrary, unfilled

from var_transformer.attention.base import NextScaleAttention, Place, check_tokens, last_scale
from var_transformer.attention.cache import KeysValues
from var_transformer.attention.segments import Plan, cut_at
from var_transformer.model.operators import filled

_LANES = 16  # floats that the kernels take at once


class CpuAttention(NextScaleAttention):
    """Stores neither separate heads nor scores in memory; casts other types to float32.

    The cache of a block is two buffers, written in place: keys (B, H, d, L rounded up to whole
    vectors) and values (B, H, L, d). The head width is a multiple of 16.
    """

    axis = 1

    def __init__(
        self,
        schedule: ScaleSchedule,
        heads: int,
        head_width: int,
        unit_length: bool,
        library: KernelLibrary,
    ) -> None:
        super().__init__(schedule, heads, unit_length, {"cheapest": _everywhere})
        self.head_width = head_width
        self.all_scales = _AllScales(library, schedule, heads, unit_length)
        self.unit = Tensor(np.array([unit_length], np.int32))
        self.cached = library.operator("cached_attention", 6)
        self.cached_block = library.operator("cached_block", 16)

    def construct(
        self,
        q_blc: Tensor,
        k_blc: Tensor,
        v_blc: Tensor,
        score_scale: Tensor | float,
        k: Place | None,
        past: KeysValues,
    ) -> tuple[Tensor, KeysValues]:
        return self.projected(ops.concat((q_blc, k_blc, v_blc), 2), score_scale, k, past)

    def projected(
        self,
        qkv_bl3c: Tensor,
        score_scale: Tensor | float,
        k: Place | None,
        past: KeysValues,
    ) -> tuple[Tensor, KeysValues]:
        dtype = qkv_bl3c.dtype
        qkv_bl3c = qkv_bl3c.astype(ms.float32)
        if isinstance(score_scale, float):
            scale_h = filled(self.heads, score_scale)
        else:
            scale_h = score_scale.reshape(-1)
        if k is None:
            last_scale(qkv_bl3c.shape[1], self.offsets)
            return self.all_scales(qkv_bl3c, scale_h)[0].astype(dtype), ()
        if isinstance(k, int):
            check_tokens(qkv_bl3c.shape[1], k, self.offsets)
            begin = _position(self.offsets[k])
        else:
            begin = k
        return self.cached(qkv_bl3c, scale_h, begin, self.unit, *past).astype(dtype), ()

    def graph_input(self, k: int, span: tuple[int, int] | None = None) -> Tensor:
        """The position of the first token: one operator takes any number of tokens."""
        return Tensor(np.array([self.offsets[k] if span is None else span[0]], np.int32))

    def empty_cache(self, batch: int) -> KeysValues:
        length, d = self.offsets[-1], self.head_width
        padded = -(-length // _LANES) * _LANES
        # not filled: that alone took 0.1 s for an image of d16, and nothing depends on it
        keys = unfilled((batch, self.heads, d, padded), ms.float32)
        return keys, unfilled((batch, self.heads, length, d), ms.float32)


def _everywhere(schedule: ScaleSchedule) -> Plan:
    """What the kernel computes, in one call."""
    return cut_at(schedule, 1)


class _AllScales(nn.Cell):
    """Mixed values (B, L, C), and for each head and query the logarithm that the gradient needs."""

    def __init__(
        self, library: KernelLibrary, schedule: ScaleSchedule, heads: int, unit_length: bool
    ) -> None:
        super().__init__()
        self.offsets = Tensor(np.array(schedule.offsets, np.int32))
        self.unit = Tensor(np.array([unit_length], np.int32))
        self.forward = library.operator(
            "next_scale_attention",
            lambda qkv, scale, *_: ((qkv[0], qkv[1], qkv[2] // 3), (qkv[0], scale[0], qkv[1])),
            outputs=2,
        )
        self.backward = library.operator(
            "next_scale_attention_grad", lambda dmixed, qkv, scale, *_: (qkv, scale), outputs=2
        )

    def construct(self, qkv_bl3c: Tensor, scale_h: Tensor) -> tuple[Tensor, Tensor]:
        return self.forward(qkv_bl3c, scale_h, self.offsets, self.unit)

    def bprop(
        self, qkv_bl3c: Tensor, scale_h: Tensor, out: tuple, dout: tuple
    ) -> tuple[Tensor, Tensor]:
        return self.backward(dout[0], qkv_bl3c, scale_h, self.offsets, self.unit, out[1])


@constexpr
def _position(token: int) -> Tensor:
    return Tensor(np.array([token], np.int32))
