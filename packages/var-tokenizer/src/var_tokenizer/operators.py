"""The operators of the autoencoder, each in the form that is fast on the current device.

Feature maps are channels-last, (B, Y, X, C). On the CPU ``nn.Conv2d``, ``nn.GroupNorm``, ``Pad``
and strided slices are 10 to 100 times slower than PyTorch. There each operator is a C++ kernel
(``cpp/``), or, if the package was installed without a compiler, is composed of the MindSpore
operators that are fast: a convolution is a lookup of pixel rows and one matrix product. An Ascend
has channels first, and the forms of ``ascend_operators``. The models call these names and never
ask for the device.
"""

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.ops import constexpr

from var_tokenizer import ascend_operators as ascend
from var_tokenizer.common.kernels import KernelLibrary, Shape, on_cpu

_kernels = KernelLibrary("var_tokenizer._kernels")
_MAX_COLUMNS = 16 * 2**20  # floats of unfolded pixels held at once: 64 MiB
_EPSILON = 1e-6  # of every group norm, as published

_matmul_nt = ops.MatMul(transpose_b=True)
_matmul_tn = ops.MatMul(transpose_a=True)
# primitives, because not all functions of mindspore.ops compile inside a bprop
_gather = ops.Gather()
_concat = ops.Concat()
_add_n = ops.AddN()
_zeros_like = ops.ZerosLike()
_sum = ops.ReduceSum()


def _form(kernel: Callable, composed: Callable, on_ascend: Callable) -> Callable:
    """Which of the three forms of an operator suits the device and the installation."""
    if not on_cpu():
        return on_ascend
    return composed if _kernels.if_usable() is None else kernel


# ---------------------------------------------------------------- convolution
@lru_cache(maxsize=64)
def _source_pixels(
    shape_byx: tuple[int, int, int], kernel: int, stride: int, pads: tuple[int, int]
) -> np.ndarray:
    """(B * Y' * X', kernel**2) int32: the pixel row each tap of each output pixel reads.

    There are ``pads`` zeros (before, after) the pixels of both axes; a tap outside the image
    reads row B * Y * X, where the caller keeps zeros.
    """
    b, y, x = shape_byx
    before, after = pads
    taps = np.arange(kernel) - before
    rows = np.arange((y + before + after - kernel) // stride + 1)[:, None] * stride + taps
    columns = np.arange((x + before + after - kernel) // stride + 1)[:, None] * stride + taps
    inside = ((rows >= 0) & (rows < y))[:, None, :, None] & ((columns >= 0) & (columns < x))[
        None, :, None, :
    ]
    pixels = rows[:, None, :, None] * x + columns[None, :, None, :]
    image = np.arange(b).reshape(b, 1, 1, 1, 1) * (y * x)
    table = np.where(inside, image + pixels, b * y * x)
    return table.reshape(-1, kernel * kernel).astype(np.int32)


@lru_cache(maxsize=64)
def _reading_pixels(
    shape_byx: tuple[int, int, int], kernel: int, stride: int, pads: tuple[int, int]
) -> np.ndarray:
    """(B * Y * X, kernel**2) int32: the output row that reads a pixel through each tap.

    If no output does, the row after the last output.
    """
    source, pixels = _source_pixels(shape_byx, kernel, stride, pads), int(np.prod(shape_byx))
    table = np.full((pixels, kernel * kernel), len(source), np.int32)
    output, tap = np.nonzero(source != pixels)
    table[source[output, tap], tap] = output
    return table


@constexpr
def _columns_table(
    shape_byx: tuple, kernel: int, stride: int, pads: tuple, chunk: tuple, backward: bool
) -> Tensor:
    table = (_reading_pixels if backward else _source_pixels)(shape_byx, kernel, stride, pads)
    return Tensor(table[chunk[0] : chunk[1]].reshape(-1))


@constexpr
def _chunks(rows: int, width: int) -> tuple:
    count = -(-rows * width // _MAX_COLUMNS)
    edges = [rows * i // count for i in range(count + 1)]
    return tuple(pairwise(edges))


class _KernelConv2d(nn.Cell):
    """Convolution by Winograd's algorithm or oneDNN, whichever suits the shapes."""

    def __init__(
        self, kernel: int, stride: int, pads: tuple[int, int], upsampled: bool = False
    ) -> None:
        super().__init__()
        # what the shapes of the arrays do not determine
        self.geometry = Tensor(np.array([stride, pads[0], upsampled], np.int32))
        setting = (kernel, stride, pads, upsampled)

        def out_shape(x: Shape, weight: Shape, *_: Shape) -> Shape:
            times = 2 if upsampled else 1
            rows, columns = ((n * times + sum(pads) - kernel) // stride + 1 for n in x[1:3])
            return (x[0], rows, columns, weight[0])

        self.forward = _kernels.operator("conv2d", out_shape, setting=setting)
        self.forward_plus = _kernels.operator("conv2d_plus", out_shape, setting=setting)
        self.grad_x = _kernels.operator(
            "conv2d_grad_x", lambda dout, weight, x, geometry: x, setting=setting
        )
        self.grad_weight = _kernels.operator(
            "conv2d_grad_weight",
            lambda dout, x, weight, geometry: (weight, (weight[0],)),
            outputs=2,
            setting=setting,
        )

    def construct(self, x_byxc: Tensor, weight_ohwi: Tensor, bias_o: Tensor) -> Tensor:
        return self.forward(x_byxc, weight_ohwi, bias_o, self.geometry)

    def bprop(
        self, x_byxc: Tensor, weight_ohwi: Tensor, bias_o: Tensor, out: Tensor, dout: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        grad_x = self.grad_x(dout, weight_ohwi, x_byxc, self.geometry)
        grad_weight, grad_bias = self.grad_weight(dout, x_byxc, weight_ohwi, self.geometry)
        return grad_x, grad_weight, grad_bias


class _KernelConv2dPlus(_KernelConv2d):
    """Convolution, and the addition after it, in one kernel."""

    def construct(  # type: ignore[override]
        self, x_byxc: Tensor, weight_ohwi: Tensor, bias_o: Tensor, plus_byxo: Tensor
    ) -> Tensor:
        return self.forward_plus(x_byxc, weight_ohwi, bias_o, plus_byxo, self.geometry)

    def bprop(  # type: ignore[override]
        self,
        x_byxc: Tensor,
        weight_ohwi: Tensor,
        bias_o: Tensor,
        plus_byxo: Tensor,
        out: Tensor,
        dout: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        grad_x = self.grad_x(dout, weight_ohwi, x_byxc, self.geometry)
        grad_weight, grad_bias = self.grad_weight(dout, x_byxc, weight_ohwi, self.geometry)
        return grad_x, grad_weight, grad_bias, dout


class _UnfoldedConv2d(nn.Cell):
    """Convolution as a lookup of pixel rows and a matrix product, a bounded chunk at a time."""

    def __init__(self, kernel: int, stride: int, pads: tuple[int, int]) -> None:
        super().__init__()
        self.kernel, self.stride, self.pads = kernel, stride, pads

    def construct(self, x_byxc: Tensor, weight_ohwi: Tensor, bias_o: Tensor) -> Tensor:
        b, y, x, c = x_byxc.shape
        k = self.kernel
        out_y = (y + self.pads[0] + self.pads[1] - k) // self.stride + 1
        out_x = (x + self.pads[0] + self.pads[1] - k) // self.stride + 1
        if b == 0:  # which Gather does not take
            return ops.zeros((b, out_y, out_x, bias_o.shape[0]), ms.float32)
        weight = weight_ohwi.reshape(weight_ohwi.shape[0], -1)
        pixels = self._with_zeros(x_byxc.reshape(-1, c))
        parts = []
        for chunk in _chunks(b * out_y * out_x, k * k * c):
            columns = self._columns(pixels, (b, y, x), chunk, False)
            parts.append(_matmul_nt(columns, weight))
        rows = parts[0] if len(parts) == 1 else _concat(parts)
        return ops.bias_add(rows, bias_o).reshape(b, out_y, out_x, -1)

    def bprop(
        self, x_byxc: Tensor, weight_ohwi: Tensor, bias_o: Tensor, out: Tensor, dout: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        b, y, x, c = x_byxc.shape
        o, k = weight_ohwi.shape[0], self.kernel
        if b == 0:
            return _zeros_like(x_byxc), _zeros_like(weight_ohwi), _zeros_like(bias_o)
        grad = dout.reshape(-1, o)

        pixels, parts = self._with_zeros(x_byxc.reshape(-1, c)), []
        for chunk in _chunks(grad.shape[0], k * k * c):
            columns = self._columns(pixels, (b, y, x), chunk, False)
            parts.append(_matmul_tn(grad[chunk[0] : chunk[1]], columns))
        grad_weight = _add_n(parts).reshape(weight_ohwi.shape)

        weight = weight_ohwi.transpose(3, 1, 2, 0).reshape(c, -1)
        reads, parts = self._with_zeros(grad), []
        for chunk in _chunks(b * y * x, k * k * o):
            columns = self._columns(reads, (b, y, x), chunk, True)
            parts.append(_matmul_nt(columns, weight))
        grad_x = parts[0] if len(parts) == 1 else _concat(parts)
        return grad_x.reshape(x_byxc.shape), grad_weight, _sum(grad, 0)

    def _with_zeros(self, rows: Tensor) -> Tensor:
        # Gather rejects indices outside the table, and ops.EmbeddingLookup, which reads zeros
        # there, breaks training graphs: updates of parameters are lost (MindSpore 2.10.0)
        if self.kernel == 1 and self.stride == 1:
            return rows
        return _concat((rows, _constant((1, rows.shape[1]), 0.0)))

    def _columns(self, rows: Tensor, shape_byx: tuple, chunk: tuple, backward: bool) -> Tensor:
        if self.kernel == 1 and self.stride == 1:
            return rows[chunk[0] : chunk[1]]
        table = _columns_table(shape_byx, self.kernel, self.stride, self.pads, chunk, backward)
        return _gather(rows, table, 0).reshape(chunk[1] - chunk[0], -1)


class _Around(nn.Cell):
    """Composed with another operator."""

    def __init__(self, inner: nn.Cell) -> None:
        super().__init__()
        self.inner = inner


class _ThenPlus(_Around):
    def construct(
        self, x_byxc: Tensor, weight_ohwi: Tensor, bias_o: Tensor, plus_byxo: Tensor
    ) -> Tensor:
        return self.inner(x_byxc, weight_ohwi, bias_o) + plus_byxo


class _AfterUpsampling(_Around):
    def construct(self, x_byxc: Tensor, weight_ohwi: Tensor, bias_o: Tensor) -> Tensor:
        b, y, x, c = x_byxc.shape
        rows = ops.concat((x_byxc, x_byxc), 3).reshape(b, y, 2 * x * c)
        repeated = ops.concat((rows, rows), 2).reshape(b, 2 * y, 2 * x, c)
        return self.inner(repeated, weight_ohwi, bias_o)


def conv2d(
    kernel: int, stride: int = 1, pads: tuple[int, int] | None = None, upsampled: bool = False
) -> nn.Cell:
    """The convolution ``f(x (B,Y,X,I), weight (O,k,k,I), bias (O)) -> (B,Y',X',O)``.

    pads: zeros (before, after) both axes; by default half a kernel on either side. upsampled: the
    rows and columns of x are repeated first.
    """
    pads = (kernel // 2, kernel // 2) if pads is None else pads
    form = _form(_KernelConv2d, _UnfoldedConv2d, ascend.Conv2d)
    if form is not _UnfoldedConv2d:
        return form(kernel, stride, pads, upsampled)
    conv = form(kernel, stride, pads)
    return _AfterUpsampling(conv) if upsampled else conv


def conv2d_plus(kernel: int) -> nn.Cell:
    """``conv2d`` with an addition, ``f(x, weight, bias, plus (B,Y,X,O)) -> (B,Y,X,O)``."""
    conv = conv2d(kernel)
    if isinstance(conv, _KernelConv2d):
        return _KernelConv2dPlus(kernel, 1, (kernel // 2, kernel // 2))
    return _ThenPlus(conv)


# ---------------------------------------------------------------- normalization
@constexpr
def _constant(shape: tuple, value: float) -> Tensor:
    return Tensor(np.full(shape, value, np.float32))


class _KernelGroupNorm(nn.Cell):
    """Group norm, and the SiLU after it, in one kernel."""

    def __init__(self, groups: int, silu: bool) -> None:
        super().__init__()
        self.groups = Tensor(np.array([groups], np.int32))
        self.epsilon = Tensor(np.array([_EPSILON], np.float32))
        name = "group_norm_silu" if silu else "group_norm"
        self.forward = _kernels.operator(name, lambda x, *_: x)
        self.backward = _kernels.operator(
            f"{name}_grad", lambda dout, x, gain, bias, *_: (x, gain, bias), outputs=3
        )

    def construct(self, x_byxc: Tensor, gain_c: Tensor, bias_c: Tensor) -> Tensor:
        return self.forward(x_byxc, gain_c, bias_c, self.groups, self.epsilon)

    def bprop(
        self, x_byxc: Tensor, gain_c: Tensor, bias_c: Tensor, out: Tensor, dout: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        return self.backward(dout, x_byxc, gain_c, bias_c, self.groups, self.epsilon)


class _RowsGroupNorm(nn.Cell):
    """Group norm over channels-last rows; sums over pixels are matrix products."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.bmm = ops.BatchMatMul()
        self.mean = ops.ReduceMean(keep_dims=True)
        self.sum = ops.ReduceSum()

    def _means(self, x_bnc: Tensor) -> Tensor:
        """(B, N, C) -> (B, C): the mean of each channel over the pixels."""
        b, n, c = x_bnc.shape
        return self.bmm(_constant((b, 1, n), 1.0 / n), x_bnc).reshape(b, c)

    def _over_group(self, x_bc: Tensor) -> Tensor:
        """The mean over each group, given to every channel of it."""
        b, c = x_bc.shape
        x_bgi = x_bc.reshape(b, self.groups, c // self.groups)
        mean_bgi = self.mean(x_bgi, -1) + _zeros_like(x_bgi)
        return mean_bgi.reshape(b, c)

    def _statistics(self, x_bnc: Tensor) -> tuple[Tensor, Tensor]:
        b, _, c = x_bnc.shape
        # relative to a pixel of the group: the rounded mean of equal pixels may differ from them
        first_bgi = x_bnc[:, 0].reshape(b, self.groups, c // self.groups)
        first_bgi = first_bgi[:, :, :1] + _zeros_like(first_bgi)
        x_bnc = x_bnc - first_bgi.reshape(b, 1, c)
        mean_b1c = self._over_group(self._means(x_bnc)).reshape(b, 1, c)
        centred = x_bnc - mean_b1c
        variance_bc = self._over_group(self._means(centred * centred))
        return centred, ops.rsqrt(variance_bc + _EPSILON).reshape(b, 1, c)

    def construct(self, x_byxc: Tensor, gain_c: Tensor, bias_c: Tensor) -> Tensor:
        b, y, x, c = x_byxc.shape
        centred, inverse_std = self._statistics(x_byxc.reshape(b, y * x, c))
        return (centred * (inverse_std * gain_c) + bias_c).reshape(b, y, x, c)

    def bprop(
        self, x_byxc: Tensor, gain_c: Tensor, bias_c: Tensor, out: Tensor, dout: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        b, y, x, c = x_byxc.shape
        n = y * x
        grad = dout.reshape(b, n, c)
        centred, inverse_std = self._statistics(x_byxc.reshape(b, n, c))
        mean_grad = self._means(grad)
        mean_grad_hat = self._means(grad * centred) * inverse_std.reshape(b, c)
        a = self._over_group(mean_grad * gain_c).reshape(b, 1, c)
        d = self._over_group(mean_grad_hat * gain_c).reshape(b, 1, c)
        grad_x = grad * (inverse_std * gain_c) - centred * (inverse_std * inverse_std * d)
        grad_x = grad_x - a * inverse_std
        grad_gain, grad_bias = self.sum(mean_grad_hat, 0) * n, self.sum(mean_grad, 0) * n
        return grad_x.reshape(b, y, x, c), grad_gain, grad_bias


class _WithSilu(_Around):
    def construct(self, x_byxc: Tensor, gain_c: Tensor, bias_c: Tensor) -> Tensor:
        y_byxc = self.inner(x_byxc, gain_c, bias_c)
        return y_byxc * ops.sigmoid(y_byxc)


def group_norm(groups: int, silu: bool = False) -> nn.Cell:
    """The group norm ``f(x (B,Y,X,C), gain (C), bias (C)) -> (B,Y,X,C)``.

    silu: whether x * sigmoid(x) follows.
    """
    form = _form(_KernelGroupNorm, _RowsGroupNorm, ascend.GroupNorm)
    if form is not _RowsGroupNorm:
        return form(groups, silu)
    norm = form(groups)
    return _WithSilu(norm) if silu else norm


# ---------------------------------------------------------------- nearest code
def _kernel_nearest() -> ops.Custom:
    return _kernels.operator("nearest_code", lambda vectors, _: (vectors[0],), dtype=ms.int32)


class _ComposedNearest(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.argmin = ops.Argmin(axis=-1)

    def construct(self, vectors_nz: Tensor, codes_vz: Tensor) -> Tensor:
        # |vector|^2 is the same for every code, so it cannot change which one is nearest
        length_v = (codes_vz * codes_vz).sum(1)
        return self.argmin(length_v - 2 * _matmul_nt(vectors_nz, codes_vz))


def nearest_code() -> nn.Cell | ops.Custom:
    """The search ``f(vectors (N,z), codes (V,z)) -> (N) int32``.

    Gives the first of the codes at the smallest Euclidean distance. It has no gradient.
    """
    return _form(_kernel_nearest, _ComposedNearest, ascend.NearestCode)()
