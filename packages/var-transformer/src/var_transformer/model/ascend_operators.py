"""Forms of the operators for an Ascend: one kernel where a composition takes several.

Products, GELU and heads are of the backend's type, usually a half one. Norms are computed in
float32, the type of the residual stream.
"""

import math

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint, nn, ops
from mindspore.ops import constexpr

_CUBE_ROWS = 12_800


def is_used() -> bool:
    """Whether cells built now run on an Ascend."""
    return ms.get_context("device_target") == "Ascend"


def linear(x: Tensor, weight_oi: Tensor, bias_o: Tensor, dtype: ms.Type) -> Tensor:
    """x @ weight.T + bias, of type ``dtype``."""
    x, weight_oi = x.astype(dtype), weight_oi.astype(dtype)
    return mint.nn.functional.linear(x, weight_oi, bias_o.astype(dtype))


class GeluLinear(nn.Cell):
    """linear(gelu(x)) by (weight, bias), as ``Recomputed`` takes it; all of one type."""

    def construct(self, x: Tensor, weight_and_bias: tuple[Tensor, Tensor]) -> Tensor:
        gelu = mint.nn.functional.gelu(x, approximate="tanh")
        return mint.nn.functional.linear(gelu, weight_and_bias[0], weight_and_bias[1])


class ModulatedNorm(nn.Cell):
    """layer_norm(x) * (1 + scale) + shift, of the type of scale and shift; computed in x's.

    What is rounded to a half type is the result, and the norm that the scale's gradient reads.
    """

    def __init__(self) -> None:
        super().__init__()
        self.modulate = _Modulate()

    def construct(self, x_blc: Tensor, scale_b1c: Tensor, shift_b1c: Tensor) -> Tensor:
        norm_blc = mint.nn.functional.layer_norm(x_blc, (x_blc.shape[-1],), None, None, 1e-6)
        return self.modulate(norm_blc, scale_b1c, shift_b1c)[0]


class _Modulate(nn.Cell):
    """The modulated norm, and the norm in its type, which the backward pass keeps."""

    def construct(
        self, norm_blc: Tensor, scale_b1c: Tensor, shift_b1c: Tensor
    ) -> tuple[Tensor, Tensor]:
        wide, dtype = norm_blc.dtype, scale_b1c.dtype
        out_blc = mint.addcmul(shift_b1c.astype(wide), norm_blc, 1 + scale_b1c.astype(wide))
        return out_blc.astype(dtype), norm_blc.astype(dtype)

    def bprop(
        self,
        norm_blc: Tensor,
        scale_b1c: Tensor,
        shift_b1c: Tensor,
        out: tuple[Tensor, Tensor],
        dout: tuple[Tensor, Tensor],
    ) -> tuple[Tensor, Tensor, Tensor]:
        d_blc, wide = dout[0], norm_blc.dtype
        d_norm = d_blc.astype(wide) * (1 + scale_b1c.astype(wide))
        d_scale = mint.sum(d_blc * out[1], 1, True)
        return d_norm, d_scale, mint.sum(d_blc, 1, True)


def sum_of_product(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """x + a * b, all of one type."""
    return mint.addcmul(x, a, b)


def scaled_norm(x_blc: Tensor, factor_b1c: Tensor, shift_b1c: Tensor) -> Tensor:
    """layer_norm(x) * factor + shift, all of one type."""
    norm_blc = mint.nn.functional.layer_norm(x_blc, (x_blc.shape[-1],), None, None, 1e-6)
    return sum_of_product(shift_b1c, norm_blc, factor_b1c)


def rows(table_nc: Tensor, ids: Tensor) -> Tensor:
    """The rows of a table at some ids."""
    return mint.nn.functional.embedding(ids, table_nc)


def columns(x: Tensor, index_n: Tensor) -> Tensor:
    """Some columns of the last axis."""
    return mint.index_select(x, len(x.shape) - 1, index_n)


def ranked(x: Tensor) -> tuple[Tensor, Tensor]:
    """The last axis ascending, equal values in their order; the index that each value had."""
    return mint.sort(x, dim=-1, stable=True)


def cumulative_sum(x: Tensor) -> Tensor:
    """Over the last axis, of x's type: float32 and int32 are summed by the NPU's vector cores.

    But floats of ``_CUBE_ROWS`` rows, of 512 or more, are summed by its matrix units (aclnnCumsum
    in CANN's ops-math 9.0), whose roundings are not documented: here no call has as many.
    """
    most = max((_CUBE_ROWS - 1) // math.prod(x.shape[1:-1]), 1)
    if x.dtype == ms.int32 or x.shape[0] <= most:
        return mint.cumsum(x, -1, dtype=x.dtype)
    sums: tuple[Tensor, ...] = ()
    for part in mint.split(x, most, 0):
        sums = (*sums, mint.cumsum(part, -1, dtype=x.dtype))
    return ops.concat(sums)


def unit_length(x_blhd: Tensor) -> Tensor:
    """x / |x| over the last axis, of x's type; 0 for 0."""
    d = x_blhd.shape[-1]
    # the root of the mean square is |x| / sqrt(d)
    return ops.rms_norm(x_blhd, _root(d, x_blhd.dtype), 1e-12)[0]


@constexpr
def _root(d: int, dtype: ms.Type) -> Tensor:
    return Tensor(np.full(d, 1 / math.sqrt(d), np.float32)).astype(dtype)
