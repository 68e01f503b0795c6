"""A block of the transformer: attention and a feed-forward network, and the layers they are of.

Names and suffixes as in ``transformer.py``.
"""

import math

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from var_transformer import attention
from var_transformer.attention import BackendConfig, KeysValues
from var_transformer.model import operators as fast
from var_transformer.model.config import TransformerConfig

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

    def construct(self, x: Tensor) -> Tensor:
        return self.linear(x, self.weight, self.bias)


class Embedding(nn.Cell):
    """A table of learned vectors; ``weight`` is (entries, C)."""

    def __init__(self, entries: int, width: int) -> None:
        super().__init__()
        self.weight = zeros(entries, width)

    def construct(self, ids: Tensor) -> Tensor:
        return ops.gather(self.weight, ids, 0)


class SiLU(nn.Cell):
    def construct(self, x: Tensor) -> Tensor:
        return x * ops.sigmoid(x)


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
        self, x_blc: Tensor, k: int | Tensor | None, past: KeysValues
    ) -> tuple[Tensor, KeysValues]:
        """All scales at once, or scale k over ``past``, the keys and values of those before."""
        # Reshaped, because MindSpore counts a tuple of parameters as a side effect, and copies all
        # weights that are read again after one, in the backward pass.
        q_bias, v_bias = self.q_bias.reshape(-1), self.v_bias.reshape(-1)
        qkv_bias = ops.concat((q_bias, ops.zeros_like(q_bias), v_bias))
        qkv_bl3c = self.mat_qkv.linear(x_blc, self.mat_qkv.weight, qkv_bias)
        score_scale = self.fixed_scale
        if self.scale_mul_1H11 is not None:
            score_scale = ops.exp(ops.minimum(self.scale_mul_1H11, _MAX_LOG_SCALE))
        mixed_blc, grown = self.attend.projected(qkv_bl3c, score_scale, k, past)
        return self.proj(mixed_blc), grown


class FeedForward(nn.Cell):
    """Two affine maps with a GELU (tanh form) between, four times as wide inside."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        c = config.width
        self.fc1 = Linear(c, 4 * c)
        self.fc2 = Linear(4 * c, c)
        self.gelu = fast.Gelu()

    def construct(self, x_blc: Tensor) -> Tensor:
        return self.fc2(self.gelu(self.fc1(x_blc)))


class Block(nn.Cell):
    """x + gate * attention(modulated_norm(x)), then the same with the feed-forward network."""

    def __init__(self, config: TransformerConfig, backend: BackendConfig) -> None:
        super().__init__()
        self.modulated_norm, self.gated_sum = fast.ModulatedNorm(), fast.GatedSum()
        self.attn = Attention(config, backend)
        self.ffn = FeedForward(config)
        if config.shared_adaln:
            self.ada_gss = zeros(1, 1, 6, config.width)
        else:
            self.ada_lin = nn.SequentialCell(SiLU(), Linear(config.width, 6 * config.width))
        self.cached = self.attn.attend.cached_block if backend.dtype == ms.float32 else None

    def construct(
        self,
        x_blc: Tensor,
        modulation_b6c: Tensor,
        keep_2b11: Tensor | None = None,
        k: int | Tensor | None = None,
        past: KeysValues = (),
    ) -> tuple[Tensor, KeysValues]:
        if self.cached is not None and len(past) > 0 and x_blc.dtype == ms.float32:
            return self._in_one_call(x_blc, modulation_b6c, k, past), ()
        gate_attn, gate_ffn, scale_attn, scale_ffn, shift_attn, shift_ffn = ops.split(
            modulation_b6c, 1, 1
        )
        if keep_2b11 is not None:  # drop path: a dropped image passes the block unchanged
            gate_attn, gate_ffn = gate_attn * keep_2b11[0], gate_ffn * keep_2b11[1]

        attended, grown = self.attn(self.modulated_norm(x_blc, scale_attn, shift_attn), k, past)
        x_blc = self.gated_sum(x_blc, attended, gate_attn)
        expanded = self.ffn(self.modulated_norm(x_blc, scale_ffn, shift_ffn))
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
