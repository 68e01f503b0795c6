"""Forms of the operators for an Ascend: one kernel where a composition takes several.

Products, GELU and heads are of the backend's type, usually a half one. Norms are computed in
float32, the type of the residual stream.
"""

import math

import mindspore as ms
import numpy as np
from mindspore import Tensor, mint, nn, ops
from mindspore.ops import constexpr


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


def modulated_norm(x_blc: Tensor, scale_b1c: Tensor, shift_b1c: Tensor, dtype: ms.Type) -> Tensor:
    """layer_norm(x) * (1 + scale) + shift, of type ``dtype``; the norm in x's."""
    norm_blc = mint.nn.functional.layer_norm(x_blc, (x_blc.shape[-1],), None, None, 1e-6)
    return norm_blc.astype(dtype) * (1 + scale_b1c).astype(dtype) + shift_b1c.astype(dtype)


def rows(table_nc: Tensor, ids: Tensor) -> Tensor:
    """The rows of a table at some ids."""
    return mint.nn.functional.embedding(ids, table_nc)


def unit_length(x_blhd: Tensor) -> Tensor:
    """x / |x| over the last axis, of x's type; 0 for 0."""
    d = x_blhd.shape[-1]
    # the root of the mean square is |x| / sqrt(d)
    return ops.rms_norm(x_blhd, _root(d, x_blhd.dtype), 1e-12)[0]


@constexpr
def _root(d: int, dtype: ms.Type) -> Tensor:
    return Tensor(np.full(d, 1 / math.sqrt(d), np.float32)).astype(dtype)
