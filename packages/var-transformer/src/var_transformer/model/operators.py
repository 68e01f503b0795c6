"""The operators of the transformer, each in the form that is fast on the device.

The CPU runs C++ kernels (``cpp/``) on float32. For other types, or if the package was installed
without a compiler, it composes MindSpore's operators. An Ascend runs the forms of
``ascend_operators``, and the fused operators of ``ascend_c`` if they were built. The model calls
these names and never asks for the device.
"""

import math

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint, nn, ops
from mindspore.ops import constexpr
from var_tokenizer.common import KernelLibrary, on_cpu

from var_transformer import ascend_c
from var_transformer.model import ascend_operators as ascend

_SMALL_ROWS, _SMALL_WEIGHT = 64, 2**17  # of an affine map

_kernels = KernelLibrary("var_transformer._kernels")


def kernels() -> KernelLibrary | None:
    """The C++ kernels, for float32 arrays; None if cells built now cannot use them."""
    return _kernels.if_usable()


class _KernelGelu(nn.Cell):
    def __init__(self, library: KernelLibrary) -> None:
        super().__init__()
        self.forward = library.operator("gelu", 1)
        self.backward = library.operator("gelu_grad", lambda dout, x: x)

    def construct(self, x: Tensor) -> Tensor:
        return self.forward(x)

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        return (self.backward(dout, x),)


class Gelu(nn.Cell):
    """GELU in its tanh form: x * sigmoid(2 sqrt(2/pi) (x + 0.044715 x^3)).

    Without a kernel the CPU composes it from ``sigmoid``: 20 times faster than ``ops.GeLU``.
    """

    def __init__(self) -> None:
        super().__init__()
        library = kernels()
        self.kernel = None if library is None else _KernelGelu(library)
        self.composed = on_cpu()
        self.linear = 2 * math.sqrt(2 / math.pi)
        self.cubic = self.linear * 0.044715

    def construct(self, x: Tensor) -> Tensor:
        if self.kernel is not None and x.dtype == ms.float32:
            return self.kernel(x)
        if not self.composed:
            return ops.gelu(x, approximate="tanh")
        return x * ops.sigmoid(x * (self.linear + self.cubic * (x * x)))


class Recomputed(nn.Cell):
    """A cell that keeps its inputs alone, and is computed again in the backward pass.

    ``f(x, others)``, arrays: the weights are among the others, because a backward pass of its own
    gives gradients of inputs only. x depends on the incoming gradient, or the compiler would find
    that the forward pass has computed the same, and keep that; ``Cell.recompute`` does keep most of
    it on an Ascend.
    """

    def __init__(self, cell: nn.Cell) -> None:
        super().__init__(auto_prefix=False)  # or weights inside would be renamed
        self.cell = cell
        self.gradients = ops.GradOperation(get_all=True, sens_param=True)

    def construct(self, x: Tensor, others: tuple[Tensor, ...]) -> Tensor:
        return self.cell(x, others)

    def bprop(
        self, x: Tensor, others: tuple[Tensor, ...], out: Tensor, dout: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.gradients(self.cell)(ops.depend(x, dout), others, dout)


@constexpr
def filled(width: int, value: float) -> Tensor:
    """A vector of one value, float32."""
    return Tensor(np.full(width, value, np.float32))


class LayerNorm(nn.Cell):
    """(x - mean) / sqrt(variance + 1e-6) over the last axis, without gain or bias."""

    def __init__(self) -> None:
        super().__init__()
        self.layer_norm = ops.LayerNorm(-1, -1, 1e-6)

    def construct(self, x_blc: Tensor) -> Tensor:
        c = x_blc.shape[-1]
        gain, bias = filled(c, 1.0).astype(x_blc.dtype), filled(c, 0.0).astype(x_blc.dtype)
        return self.layer_norm(x_blc, gain, bias)[0]


class _KernelModulatedNorm(nn.Cell):
    def __init__(self, library: KernelLibrary) -> None:
        super().__init__()
        self.forward = library.operator("modulated_norm", 3)
        self.backward = library.operator(
            "modulated_norm_grad", lambda dout, x, scale: (x, scale, scale), outputs=3
        )

    def construct(self, x_blc: Tensor, scale_b1c: Tensor, shift_b1c: Tensor) -> Tensor:
        return self.forward(x_blc, scale_b1c, shift_b1c)

    def bprop(
        self, x_blc: Tensor, scale_b1c: Tensor, shift_b1c: Tensor, out: Tensor, dout: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self.backward(dout, x_blc, scale_b1c)


class _ComposedModulatedNorm(nn.Cell):
    """Of the type of scale and shift; computed in x's."""

    def __init__(self) -> None:
        super().__init__()
        self.ascend = ascend.ModulatedNorm() if ascend.is_used() else None
        self.norm = LayerNorm()

    def construct(self, x_blc: Tensor, scale_b1c: Tensor, shift_b1c: Tensor) -> Tensor:
        if self.ascend is not None:
            return self.ascend(x_blc, scale_b1c, shift_b1c)
        wide, dtype = x_blc.dtype, scale_b1c.dtype
        y_blc = self.norm(x_blc) * (1 + scale_b1c.astype(wide)) + shift_b1c.astype(wide)
        return y_blc.astype(dtype)


class ModulatedNorm(nn.Cell):
    """The adaptive layer norm of DiT (arXiv:2212.09748): layer_norm(x) * (1 + scale) + shift.

    ``f(x (B,L,C), scale (B,1,C), shift (B,1,C)) -> (B,L,C)``; the norm is ``LayerNorm``'s. On an
    Ascend the result is of ``dtype``, for the product that follows.
    """

    def __init__(self) -> None:
        super().__init__()
        library = kernels()
        self.kernel = None if library is None else _KernelModulatedNorm(library)
        fused = ascend_c.operators()
        self.composed = _ComposedModulatedNorm()
        self.fused = None if fused is None else ascend_c.ModulatedNorm(fused, self.composed)
        self.ascend = ascend.ModulatedNorm() if ascend.is_used() else None
        self.dtype = ms.float32

    def construct(self, x_blc: Tensor, scale_b1c: Tensor, shift_b1c: Tensor) -> Tensor:
        if self.kernel is not None and x_blc.dtype == ms.float32:
            return self.kernel(x_blc, scale_b1c, shift_b1c)
        if self.fused is not None and ascend_c.takes_width(x_blc.shape[-1]):
            dtype = self.dtype if x_blc.dtype == ms.float32 else x_blc.dtype
            return self.fused(x_blc, scale_b1c.astype(dtype), shift_b1c.astype(dtype))
        if self.ascend is not None:
            return self.ascend(x_blc, scale_b1c.astype(self.dtype), shift_b1c.astype(self.dtype))
        return self.composed(x_blc, scale_b1c, shift_b1c)


class _KernelGatedSum(nn.Cell):
    def __init__(self, library: KernelLibrary) -> None:
        super().__init__()
        self.forward = library.operator("gated_sum", 3)
        self.backward = library.operator(
            "gated_sum_grad", lambda dout, branch, gate: (branch, gate), outputs=2
        )

    def construct(self, x_blc: Tensor, branch_blc: Tensor, gate_b1c: Tensor) -> Tensor:
        return self.forward(x_blc, branch_blc, gate_b1c)

    def bprop(
        self, x_blc: Tensor, branch_blc: Tensor, gate_b1c: Tensor, out: Tensor, dout: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        grad_branch, grad_gate = self.backward(dout, branch_blc, gate_b1c)
        return dout, grad_branch, grad_gate


class GatedSum(nn.Cell):
    """x + gate * branch, ``f(x (B,L,C), branch (B,L,C), gate (B,1,C)) -> (B,L,C)``."""

    def __init__(self) -> None:
        super().__init__()
        library = kernels()
        self.kernel = None if library is None else _KernelGatedSum(library)

    def construct(self, x_blc: Tensor, branch_blc: Tensor, gate_b1c: Tensor) -> Tensor:
        if self.kernel is not None and x_blc.dtype == ms.float32:
            return self.kernel(x_blc, branch_blc, gate_b1c)
        gated_blc = gate_b1c.astype(branch_blc.dtype) * branch_blc
        return x_blc + gated_blc.astype(x_blc.dtype)


class PreparedNorm(nn.Cell):
    """``ModulatedNorm`` by what ``prepared`` makes of scale and shift; the result is of ``dtype``.

    One norm and one kernel more, if the norm is not fused: shift + factor * norm.
    """

    def __init__(self, dtype: ms.Type) -> None:
        super().__init__()
        fused = ascend_c.operators()
        self.fused = None if fused is None else fused.var_modulated_norm
        self.on_ascend = ascend.is_used()
        self.norm = LayerNorm()
        self.dtype = dtype

    def prepared(self, scale_b1c: Tensor, shift_b1c: Tensor) -> tuple[Tensor, Tensor]:
        if self.fused is not None and ascend_c.takes_width(scale_b1c.shape[-1]):
            return scale_b1c.astype(self.dtype), shift_b1c.astype(self.dtype)
        return scale_b1c.astype(ms.float32) + 1, shift_b1c.astype(ms.float32)

    def construct(self, x_blc: Tensor, factor_b1c: Tensor, shift_b1c: Tensor) -> Tensor:
        if self.fused is not None and ascend_c.takes_width(x_blc.shape[-1]):
            return self.fused(x_blc, factor_b1c, shift_b1c)
        if self.on_ascend:
            return ascend.scaled_norm(x_blc, factor_b1c, shift_b1c).astype(self.dtype)
        return (self.norm(x_blc) * factor_b1c + shift_b1c).astype(self.dtype)


class PreparedGatedSum(nn.Cell):
    """``GatedSum`` by a gate of x's type, (B, 1, C)."""

    def __init__(self) -> None:
        super().__init__()
        self.on_ascend = ascend.is_used()

    def construct(self, x_blc: Tensor, branch_blc: Tensor, gate_b1c: Tensor) -> Tensor:
        branch_blc = branch_blc.astype(x_blc.dtype)
        if self.on_ascend:
            return ascend.sum_of_product(x_blc, gate_b1c, branch_blc)
        return x_blc + gate_b1c * branch_blc


class _KernelLinear(nn.Cell):
    def __init__(self, library: KernelLibrary) -> None:
        super().__init__()
        self.forward = library.operator("linear", 3)
        self.backward = library.operator(
            "linear_grad", lambda dout, x, weight: (x, weight, (weight[0],)), outputs=3
        )

    def construct(self, x: Tensor, weight_oi: Tensor, bias_o: Tensor) -> Tensor:
        return self.forward(x, weight_oi, bias_o)

    def bprop(
        self, x: Tensor, weight_oi: Tensor, bias_o: Tensor, out: Tensor, dout: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self.backward(dout, x, weight_oi)


def _is_small(x: Tensor, weight_oi: Tensor) -> bool:
    """Whether a composed map takes less time: measured, see ``benchmarks/operators.json``."""
    if ops.is_sequence_value_unknown(x.shape):  # in a graph of any length
        return False
    return x.size <= _SMALL_ROWS * x.shape[-1] and weight_oi.size <= _SMALL_WEIGHT


class Linear(nn.Cell):
    """x @ weight.T + bias over the last axis; ``weight`` is (outputs, inputs).

    ``dtype`` is the type of the product, forward and backward; everything else stays float32, but
    on an Ascend the bias is added inside the product, and the result is of ``dtype``.
    """

    def __init__(self) -> None:
        super().__init__()
        library = kernels()
        self.kernel = None if library is None else _KernelLinear(library)
        self.on_ascend = ascend.is_used()
        self.matmul_nt = ops.MatMul(transpose_b=True)
        self.dtype = ms.float32

    def construct(self, x: Tensor, weight_oi: Tensor, bias_o: Tensor) -> Tensor:
        usable = x.dtype == self.dtype == ms.float32
        if self.kernel is not None and usable and not _is_small(x, weight_oi):
            return self.kernel(x, weight_oi, bias_o)
        if self.on_ascend:
            return ascend.linear(x, weight_oi, bias_o, self.dtype)
        # without rows MatMul leaves the weight's gradient unwritten; graphs of any length have none
        if not ops.is_sequence_value_unknown(x.shape) and 0 in x.shape[:-1]:
            return ops.zeros((*x.shape[:-1], weight_oi.shape[0]), ms.float32)
        rows = x.reshape(-1, x.shape[-1])
        if self.dtype == ms.float32:  # an array of a half type keeps its type
            rows = self.matmul_nt(rows, weight_oi)
        else:
            rows, weight_oi = rows.astype(self.dtype), weight_oi.astype(self.dtype)
            rows = self.matmul_nt(rows, weight_oi).astype(ms.float32)
        return ops.bias_add(rows, bias_o).reshape(*x.shape[:-1], weight_oi.shape[0])


class GeluLinear(nn.Cell):
    """``Linear`` of the GELU of x. An Ascend computes the GELU again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.gelu, self.linear = Gelu(), Linear()
        self.recomputed = Recomputed(ascend.GeluLinear()) if ascend.is_used() else None

    def construct(self, x: Tensor, weight_oi: Tensor, bias_o: Tensor) -> Tensor:
        if self.recomputed is not None:
            dtype = self.linear.dtype
            return self.recomputed(x, (weight_oi.astype(dtype), bias_o.astype(dtype)))
        return self.linear(self.gelu(x), weight_oi, bias_o)


class Rows(nn.Cell):
    """The rows of a table at some ids, ``f(table (N,C), ids (...)) -> (...,C)``.

    On an Ascend, other than by ``layout.rows_at``: it takes two kernels less in a training step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.on_ascend = ascend.is_used()

    def construct(self, table_nc: Tensor, ids: Tensor) -> Tensor:
        if self.on_ascend:
            return ascend.rows(table_nc, ids)
        return ops.gather(table_nc, ids, 0)


class Columns(nn.Cell):
    """Some columns of the last axis, ``f(x (..., N), index (n) int32) -> (..., n)``."""

    def __init__(self) -> None:
        super().__init__()
        self.on_ascend = ascend.is_used()

    def construct(self, x: Tensor, index_n: Tensor) -> Tensor:
        if self.on_ascend:
            return ascend.columns(x, index_n)
        return ops.gather(x, index_n, len(x.shape) - 1)


class Ranked(nn.Cell):
    """The last axis ascending, equal values in their order; the index that each value had."""

    def __init__(self) -> None:
        super().__init__()
        self.on_ascend = ascend.is_used()
        self.sort = ops.Sort()

    def construct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.on_ascend:
            return ascend.ranked(x)
        values, index = self.sort(x)
        return values, index.astype(ms.int64)


class CumulativeSum(nn.Cell):
    """Sums of the first 1, 2, ... entries of the last axis, of x's type."""

    def __init__(self) -> None:
        super().__init__()
        self.on_ascend = ascend.is_used()
        self.sum = ops.CumSum()

    def construct(self, x: Tensor) -> Tensor:
        return ascend.cumulative_sum(x) if self.on_ascend else self.sum(x, -1)


class Softmax(nn.Cell):
    """Over the last axis of a float32 array. Exact to a rounding or two.

    On the CPU, MindSpore's exponential of float32 is off by up to 95 units in the last place.
    """

    def __init__(self) -> None:
        super().__init__()
        self.on_cpu = on_cpu()
        self.most, self.sum = ops.ReduceMax(keep_dims=True), ops.ReduceSum(keep_dims=True)

    def construct(self, x: Tensor) -> Tensor:
        if not self.on_cpu:
            return ops.softmax(x, -1)
        powers = ops.exp((x - self.most(x, -1)).astype(ms.float64)).astype(ms.float32)
        return powers / self.sum(powers, -1)


class First(nn.Cell):
    """The first ``count`` of an array's axis; on an Ascend a view. ``f(x, count, axis)``."""

    def __init__(self) -> None:
        super().__init__()
        self.on_ascend = ascend.is_used()

    def construct(self, x: Tensor, count: int, axis: int) -> Tensor:
        if self.on_ascend:
            return x if count == x.shape[axis] else mint.narrow(x, axis, 0, count)
        return x[:count] if axis == 0 else x[:, :count]


class UnitLength(nn.Cell):
    """x / max(|x|, 1e-12) over the last axis, of x's type; lengths are summed in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.on_ascend = ascend.is_used()
        self.sum = ops.ReduceSum(keep_dims=True)

    def construct(self, x: Tensor) -> Tensor:
        if self.on_ascend:
            return ascend.unit_length(x)
        dtype = x.dtype
        x = x.astype(ms.float32)
        return (x * ops.rsqrt(ops.maximum(self.sum(x * x, -1), 1e-24))).astype(dtype)
