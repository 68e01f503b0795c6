"""Convolutions of frozen weights, with the batch norm after them folded in.

Each has the form that suits the device. Maps are in the layout of ``var_tokenizer.layout``.
"""

from collections.abc import Mapping
from functools import lru_cache

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, mint, nn, ops
from var_tokenizer import Conv2d, operators
from var_tokenizer.common import KernelLibrary, on_cpu

Weights = Mapping[str, np.ndarray]
Shape = tuple[int, ...]

_kernels = KernelLibrary("var_train._kernels")

_EPSILON = 1e-3  # of the batch norms in the networks that TensorFlow trained


def folded(weights: Weights, conv: str, norm: str) -> tuple[np.ndarray, np.ndarray]:
    """Weight (O, I, rows, columns) and bias (O) of a convolution with the batch norm after it."""
    gain, bias, mean, variance = (
        weights[f"{norm}.{part}"].astype(np.float64)
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    factor = gain / np.sqrt(variance + _EPSILON)
    weight = weights[f"{conv}.weight"] * factor[:, None, None, None]
    return weight.astype(np.float32), (bias - mean * factor).astype(np.float32)


def frozen(array: np.ndarray) -> Parameter:
    """A parameter that no training changes."""
    return Parameter(Tensor(np.ascontiguousarray(array)), requires_grad=False)


def convolution(
    weight_oihw: np.ndarray, bias_o: np.ndarray, stride: int, pads: tuple[int, int]
) -> nn.Cell:
    """``f(map) -> map``. pads: zeros (before, after) both axes.

    A kernel of one row or one column has a stride of 1 and as many results as pixels.
    """
    outputs, inputs, rows, columns = weight_oihw.shape
    if rows != columns:
        form = _LineConvolution if on_cpu() else _AscendLineConvolution
        return form(weight_oihw, bias_o)
    cell = Conv2d(None, inputs, outputs, rows, stride, pads)
    cell.weight, cell.bias = frozen(weight_oihw.transpose(0, 2, 3, 1)), frozen(bias_o)
    return cell


class _LineConvolution(nn.Cell):
    """A lookup of the pixels along the line, then a 1x1 convolution."""

    def __init__(self, weight_oihw: np.ndarray, bias_o: np.ndarray) -> None:
        super().__init__()
        outputs, _, rows, columns = weight_oihw.shape
        self.axis, self.taps = (2 if rows == 1 else 1), max(rows, columns)
        weight_ohwi = weight_oihw.transpose(0, 2, 3, 1).reshape(outputs, 1, 1, -1)
        self.weight, self.bias = frozen(weight_ohwi), frozen(bias_o)
        self.conv2d = operators.conv2d(1)

    def construct(self, x_byxc: Tensor) -> Tensor:
        b, y, x, c = x_byxc.shape
        rows = ops.concat((x_byxc.reshape(-1, c), ops.zeros((1, c), ms.float32)))
        lines = ops.gather(rows, _line_pixels((b, y, x), self.axis, self.taps), 0)
        return self.conv2d(lines.reshape(b, y, x, -1), self.weight, self.bias)


@lru_cache(maxsize=64)
def _line_pixels(shape_byx: tuple[int, int, int], axis: int, taps: int) -> Tensor:
    """(B * Y * X * taps,) int32: the row of pixels that each tap reads; outside, the one after."""
    pixels = np.arange(np.prod(shape_byx), dtype=np.int32).reshape(shape_byx)
    around = [(0, 0)] * 3
    around[axis] = (taps // 2, taps // 2)
    padded = np.pad(pixels, around, constant_values=pixels.size)
    windows = np.lib.stride_tricks.sliding_window_view(padded, taps, axis)
    return Tensor(np.ascontiguousarray(windows).reshape(-1))


class _AscendLineConvolution(nn.Cell):
    """Maps are (B, C, Y, X)."""

    def __init__(self, weight_oihw: np.ndarray, bias_o: np.ndarray) -> None:
        super().__init__()
        self.weight, self.bias = frozen(weight_oihw), frozen(bias_o)
        self.padding = weight_oihw.shape[2] // 2, weight_oihw.shape[3] // 2

    def construct(self, x_bcyx: Tensor) -> Tensor:
        return mint.nn.functional.conv2d(x_bcyx, self.weight, self.bias, 1, self.padding)


# ---------------------------------------------------------------- of each channel alone
class _KernelDepthwise(nn.Cell):
    """One C++ kernel (``cpp/depthwise.cpp``). Only x has a gradient: the weights are frozen."""

    def __init__(self, kernel: int, stride: int, pads: tuple[int, int]) -> None:
        super().__init__()
        self.geometry = Tensor(np.array([stride, pads[0]], np.int32))
        setting = (kernel, stride, pads)

        def out_shape(x: Shape, *_: Shape) -> Shape:
            rows, columns = ((n + sum(pads) - kernel) // stride + 1 for n in x[1:3])
            return (x[0], rows, columns, x[3])

        self.forward = _kernels.operator("depthwise", out_shape, setting=setting)
        self.backward = _kernels.operator("depthwise_grad", lambda dout, x, *_: x, setting=setting)

    def construct(self, x_byxc: Tensor, weight_kkc: Tensor, bias_c: Tensor) -> Tensor:
        return self.forward(x_byxc, weight_kkc, bias_c, self.geometry)

    def bprop(
        self, x_byxc: Tensor, weight_kkc: Tensor, bias_c: Tensor, out: Tensor, dout: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        grad_x = self.backward(dout, x_byxc, weight_kkc, self.geometry, out)
        return grad_x, ops.zeros_like(weight_kkc), ops.zeros_like(bias_c)


class _ComposedDepthwise(nn.Cell):
    """Of MindSpore's operators, for a CPU without the kernels: slow."""

    def __init__(self, kernel: int, stride: int, pads: tuple[int, int]) -> None:
        super().__init__()
        self.kernel, self.stride, self.pads = kernel, stride, (*pads, *pads)

    def construct(self, x_byxc: Tensor, weight_kkc: Tensor, bias_c: Tensor) -> Tensor:
        c, k = bias_c.shape[0], self.kernel
        conv = ops.Conv2D(c, k, pad_mode="pad", pad=self.pads, stride=self.stride, group=c)
        weight_c1kk = weight_kkc.transpose(2, 0, 1).reshape(c, 1, k, k)
        y_bcyx = conv(ops.relu6(x_byxc).transpose(0, 3, 1, 2), weight_c1kk)
        return ops.relu6(y_bcyx.transpose(0, 2, 3, 1) + bias_c)


class _AscendDepthwise(nn.Cell):
    """Maps are (B, C, Y, X). Padding is a part of the convolution, which pads both ends alike.

    For more zeros at one end, the kernel gets rows and columns of zeros at the other.
    """

    def __init__(self, kernel: int, stride: int, pads: tuple[int, int]) -> None:
        super().__init__()
        self.stride, self.padding = stride, max(pads)
        self.zeros = self.padding - pads[0], self.padding - pads[1]

    def construct(self, x_bcyx: Tensor, weight_kkc: Tensor, bias_c: Tensor) -> Tensor:
        functional = mint.nn.functional
        weight_c1kk = weight_kkc.transpose(2, 0, 1).expand_dims(1)
        if self.zeros != (0, 0):
            weight_c1kk = functional.pad(weight_c1kk, self.zeros + self.zeros)
        x_bcyx = functional.relu6(x_bcyx)
        y_bcyx = functional.conv2d(
            x_bcyx, weight_c1kk, bias_c, self.stride, self.padding, 1, bias_c.shape[0]
        )
        return functional.relu6(y_bcyx)


def depthwise(kernel: int, stride: int, pads: tuple[int, int]) -> nn.Cell:
    """``f(map x, weight (k,k,C), bias (C)) -> map``: relu6(depthwise convolution of relu6(x)).

    pads: zeros (before, after) both axes. Weight and bias get no gradient.
    """
    if not on_cpu():
        return _AscendDepthwise(kernel, stride, pads)
    form = _ComposedDepthwise if _kernels.if_usable() is None else _KernelDepthwise
    return form(kernel, stride, pads)
