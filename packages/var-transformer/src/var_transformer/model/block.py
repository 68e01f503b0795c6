"""A block of the transformer: attention and a feed-forward network, and the layers they are of.

Names and suffixes as in ``transformer.py``. If a cell is ``given`` arrays, it computes with them in
the place of its parameters, in the order of ``trainable_params``. What all blocks compute alike of
a few numbers is computed at once then, and given as the result (``Transformer.shared``).
"""

import math
from typing import TypeAlias

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from var_tokenizer import layout

from var_transformer import attention
from var_transformer.attention import BackendConfig, KeysValues, Place
from var_transformer.model import operators as fast
from var_transformer.model.config import TransformerConfig

Given: TypeAlias = tuple[Tensor, ...]
"""Arrays in the place of parameters, in the order of ``trainable_params``; () for none."""

_MAX_LOG_SCALE = math.log(100)  # of the learned attention scale


def zeros(*shape: int) -> Parameter:
    # the array itself, not a copy: memory that is never written takes no room
    return Parameter(Tensor.from_numpy(np.zeros(shape, np.float32)))


class Linear(nn.Cell):
    """An affine map of the last axis; ``weight`` is (outputs, inputs)."""

    def __init__(self, inputs: int, outputs: int, has_bias: bool = True) -> None:
        super().__init__()
        self.weight = zeros(outputs, inputs)
        self.bias = zeros(outputs) if has_bias else None
        self.linear = fast.Linear()

    def construct(self, x: Tensor, given: Given = ()) -> Tensor:
        if len(given) > 0:
            return self.linear(x, given[0], given[1])
        return self.linear(x, self.weight, self.bias)


class Embedding(nn.Cell):
    """A table of learned vectors; ``weight`` is (entries, C)."""

    def __init__(self, entries: int, width: int) -> None:
        super().__init__()
        self.weight = zeros(entries, width)
        self.rows = fast.Rows()

    def construct(self, ids: Tensor, given: Given = ()) -> Tensor:
        if len(given) > 0:
            return self.rows(given[0], ids)
        return self.rows(self.weight, ids)


class SiLU(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.fork = layout.fork()

    def construct(self, x: Tensor) -> Tensor:
        x, same = self.fork(x)
        return x * ops.sigmoid(same)


class Modulation(nn.SequentialCell):
    """``count`` modulation vectors of a class side by side: (B, C) -> (B, count * C)."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__(SiLU(), Linear(width, count * width))

    def construct(self, class_bc: Tensor, given: Given = ()) -> Tensor:
        """With ``given`` weights, class_bc is already behind the SiLU."""
        if len(given) > 0:
            return self.cell_list[1](class_bc, given)
        return self.cell_list[1](self.cell_list[0](class_bc))


def scale_of(log_scale: Tensor) -> Tensor:
    """The learned scale of scores from its logarithm."""
    return ops.exp(ops.minimum(log_scale, _MAX_LOG_SCALE))


def with_scale(weights: Given, scales: tuple[Tensor, ...], i: int) -> Given:
    """The weights of block i with its scale of scores in the place of the logarithm."""
    return (*weights[:2], scales[i], *weights[3:]) if len(scales) > 0 else weights


class Attention(nn.Cell):
    """Multi-head self-attention; with QK-L2 norm, cosine scores times a learned scale per head.

    The scale is exp(min(scale_mul, log 100)); without QK-L2 it is 0.25 / sqrt(d), as published.
    """

    def __init__(self, config: TransformerConfig, backend: BackendConfig) -> None:
        super().__init__()
        c, h = config.width, config.heads
        self.mat_qkv = Linear(c, 3 * c, has_bias=False)
        self.q_bias = zeros(c)
        self.v_bias = zeros(c)
        self.scale_mul_1H11 = zeros(1, h, 1, 1) if config.qk_l2_norm else None
        self.fixed_scale = 0.25 / math.sqrt(c // h)
        self.proj = Linear(c, c)
        self.attend = attention.build(config.schedule, h, c // h, config.qk_l2_norm, backend)

    def construct(
        self, x_blc: Tensor, k: Place | None, past: KeysValues, given: Given = ()
    ) -> tuple[Tensor, KeysValues]:
        """All scales at once, or scale k over ``past``, the keys and values of those before.

        given: with the scale of scores itself in the place of its logarithm.
        """
        q_bias = self.q_bias if len(given) == 0 else given[0]
        v_bias = self.v_bias if len(given) == 0 else given[1]
        qkv_weight = self.mat_qkv.weight if len(given) == 0 else given[-3]
        # Reshaped, because MindSpore counts a tuple of parameters as a side effect, and copies all
        # weights that are read again after one, in the backward pass.
        q_bias, v_bias = q_bias.reshape(-1), v_bias.reshape(-1)
        qkv_bias = ops.concat((q_bias, ops.zeros_like(q_bias), v_bias))
        qkv_bl3c = self.mat_qkv.linear(x_blc, qkv_weight, qkv_bias)
        score_scale = self.fixed_scale
        if self.scale_mul_1H11 is not None:
            score_scale = scale_of(self.scale_mul_1H11) if len(given) == 0 else given[2]
        mixed_blc, grown = self.attend.projected(qkv_bl3c, score_scale, k, past)
        return self.proj(mixed_blc, given[-2:]), grown


class FeedForward(nn.Cell):
    """Two affine maps with a GELU (tanh form) between, four times as wide inside."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        c = config.width
        self.fc1 = Linear(c, 4 * c)
        self.fc2 = Linear(4 * c, c)
        self.gelu_linear = fast.GeluLinear()

    def construct(self, x_blc: Tensor, given: Given = ()) -> Tensor:
        expanded = self.fc1(x_blc, given[:2])
        if len(given) > 0:
            return self.gelu_linear(expanded, given[2], given[3])
        return self.gelu_linear(expanded, self.fc2.weight, self.fc2.bias)


class Block(nn.Cell):
    """x + gate * attention(modulated_norm(x)), then the same with the feed-forward network."""

    def __init__(self, config: TransformerConfig, backend: BackendConfig) -> None:
        super().__init__()
        self.modulated_norm, self.gated_sum = fast.ModulatedNorm(), fast.GatedSum()
        self.parts, self.fork = layout.parts(), layout.fork()
        self.attn = Attention(config, backend)
        self.ffn = FeedForward(config)
        if config.shared_adaln:
            self.ada_gss = zeros(1, 1, 6, config.width)
        else:
            self.ada_lin = Modulation(config.width, 6)
        self.cached = self.attn.attend.cached_block if backend.dtype == ms.float32 else None

    def construct(
        self,
        x_blc: Tensor,
        modulation_b6c: Tensor,
        keep_2b11: Tensor | tuple[Tensor, Tensor] | None = None,
        k: Place | None = None,
        past: KeysValues = (),
        given: Given = (),
    ) -> tuple[Tensor, KeysValues]:
        """x (B, L, C) after the block, and its keys and values, () if they were written in place.

        keep_2b11: what drop path multiplies the two branches of each image by. given: without those
        of the modulation, which is computed outside.
        """
        if self.cached is not None and len(past) > 0 and x_blc.dtype == ms.float32:
            return self._in_one_call(x_blc, modulation_b6c, k, past), ()
        gate_attn, gate_ffn, scale_attn, scale_ffn, shift_attn, shift_ffn = self.parts(
            modulation_b6c, 1, 1
        )
        if keep_2b11 is not None:  # drop path: a dropped image passes the block unchanged
            gate_attn, gate_ffn = gate_attn * keep_2b11[0], gate_ffn * keep_2b11[1]

        x_blc, read_blc = self.fork(x_blc)
        normed_blc = self.modulated_norm(read_blc, scale_attn, shift_attn)
        attended, grown = self.attn(normed_blc, k, past, given[:-4])
        x_blc, read_blc = self.fork(self.gated_sum(x_blc, attended, gate_attn))
        normed_blc = self.modulated_norm(read_blc, scale_ffn, shift_ffn)
        expanded = self.ffn(normed_blc, given[-4:])
        x_blc = self.gated_sum(x_blc, expanded, gate_ffn)
        return x_blc, grown

    def _in_one_call(
        self, x_blc: Tensor, modulation_b6c: Tensor, begin: Tensor, past: KeysValues
    ) -> Tensor:
        """The same by one kernel: starting its operators takes longer than a small scale."""
        attn, ffn = self.attn, self.ffn
        if attn.scale_mul_1H11 is None:
            scale_h = fast.filled(attn.attend.heads, attn.fixed_scale)
        else:
            scale_h = attn.scale_mul_1H11
        return self.cached(  # type: ignore[misc]  # it is there
            *(x_blc, modulation_b6c, attn.mat_qkv.weight, attn.q_bias, attn.v_bias, scale_h),
            *(attn.proj.weight, attn.proj.bias, ffn.fc1.weight, ffn.fc1.bias),
            *(ffn.fc2.weight, ffn.fc2.bias, begin, attn.attend.unit, *past),
        )
