"""The operators of the transformer, each in the form that is fast on the device at hand.

The models call these names and never ask for the device.
"""

import math

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.ops import constexpr


def on_cpu() -> bool:
    """Whether cells built now run on the CPU."""
    return ms.get_context("device_target") == "CPU"


class Gelu(nn.Cell):
    """GELU in its tanh form: x * sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)).

    On the CPU through ``sigmoid``, 20 times faster there than ``ops.GeLU``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.composed = on_cpu()
        self.linear = 2 * math.sqrt(2 / math.pi)
        self.cubic = self.linear * 0.044715

    def construct(self, x: Tensor) -> Tensor:
        if not self.composed:
            return ops.gelu(x, approximate="tanh")
        return x * ops.sigmoid(x * (self.linear + self.cubic * (x * x)))


@constexpr
def _filled(width: int, value: float) -> Tensor:
    return Tensor(np.full(width, value, np.float32))


class LayerNorm(nn.Cell):
    """(x - mean) / sqrt(variance + 1e-6) over the last axis, without gain or bias."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_norm = ops.LayerNorm(-1, -1, 1e-6)

    def construct(self, x_blc: Tensor) -> Tensor:
        c = x_blc.shape[-1]
        gain, bias = _filled(c, 1.0).astype(x_blc.dtype), _filled(c, 0.0).astype(x_blc.dtype)
        return self.layer_norm(x_blc, gain, bias)[0]


class ModulatedNorm(nn.Cell):
    """The adaptive layer norm of DiT (arXiv:2212.09748): layer_norm(x) * (1 + scale) + shift.

    ``f(x (B,L,C), scale (B,1,C), shift (B,1,C)) -> (B,L,C)``; the norm is ``LayerNorm``'s.
    """

    def __init__(self) -> None:
        super().__init__()
        self.norm = LayerNorm()

    def construct(self, x_blc: Tensor, scale_b1c: Tensor, shift_b1c: Tensor) -> Tensor:
        return self.norm(x_blc) * (1 + scale_b1c) + shift_b1c


class Linear(nn.Cell):
    """x @ weight.T + bias over the last axis; ``weight`` is (outputs, inputs)."""

    def __init__(self) -> None:
        super().__init__()
        self.matmul_nt = ops.MatMul(transpose_b=True)

    def construct(self, x: Tensor, weight_oi: Tensor, bias_o: Tensor) -> Tensor:
        rows = self.matmul_nt(x.reshape(-1, x.shape[-1]), weight_oi)
        return ops.bias_add(rows, bias_o).reshape(*x.shape[:-1], -1)


class UnitLength(nn.Cell):
    """x / max(|x|, 1e-12) over the last axis."""

    def __init__(self) -> None:
        super().__init__()
        self.sum = ops.ReduceSum(keep_dims=True)

    def construct(self, x: Tensor) -> Tensor:
        return x * ops.rsqrt(ops.maximum(self.sum(x * x, -1), 1e-24))
