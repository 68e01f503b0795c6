"""Cells of the fused operators; their backward is composed of MindSpore's operators.

``operators`` is the module that ``building.load`` returns.
"""

from types import ModuleType

import mindspore as ms
from mindspore import Tensor, nn, ops
from mindspore.ops import constexpr


@constexpr
def takes_width(width: int) -> bool:
    """Whether rows of this width can be normalized (``PlanModulatedNorm`` in tiling.h)."""
    return 0 < width <= 4096 and width % 64 == 0


def takes_heads(heads: int, head_width: int) -> bool:
    """Whether such heads can be scaled (``PlanUnitHeads``): a row takes up to 16 KiB as float32."""
    return heads <= 248 and head_width % 16 == 0 and head_width <= 64 and heads * head_width <= 4096


class ModulatedNorm(nn.Cell):
    """layer_norm(x) * (1 + scale) + shift in one pass.

    ``f(x (B,L,C), scale (B,1,C), shift (B,1,C)) -> (B,L,C)`` of x's type; C as ``takes_width``.
    """

    def __init__(self, operators: ModuleType) -> None:
        super().__init__()
        self.fused = operators.var_modulated_norm

    def construct(self, x_blc: Tensor, scale_b1c: Tensor, shift_b1c: Tensor) -> Tensor:
        return self.fused(x_blc, scale_b1c.astype(x_blc.dtype), shift_b1c.astype(x_blc.dtype))

    def bprop(
        self, x_blc: Tensor, scale_b1c: Tensor, shift_b1c: Tensor, _y: Tensor, d_y: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide_blc, d_blc = x_blc.astype(ms.float32), d_y.astype(ms.float32)
        centred_blc = wide_blc - wide_blc.mean(-1, keep_dims=True)
        rate_bl1 = ops.rsqrt((centred_blc * centred_blc).mean(-1, keep_dims=True) + 1e-6)
        norm_blc = centred_blc * rate_bl1
        d_norm_blc = d_blc * (1 + scale_b1c.astype(ms.float32))
        inner_bl1 = (d_norm_blc * norm_blc).mean(-1, keep_dims=True)
        d_x_blc = rate_bl1 * (d_norm_blc - d_norm_blc.mean(-1, keep_dims=True))
        d_x_blc = d_x_blc - rate_bl1 * norm_blc * inner_bl1
        d_scale_b1c = (d_blc * norm_blc).sum(1, keepdims=True)
        d_shift_b1c = d_blc.sum(1, keepdims=True)
        return (
            d_x_blc.astype(x_blc.dtype),
            d_scale_b1c.astype(scale_b1c.dtype),
            d_shift_b1c.astype(shift_b1c.dtype),
        )


class UnitHeads(nn.Cell):
    """Scales queries and keys to length 1 per head, queries by a scale; all three to a half type.

    ``f(qkv (B,L,3*H*d), scale (H,) float32) -> q, k, v (B,L,H,d)``; heads as ``takes_heads``, of
    float32 or already of the half type.
    """

    def __init__(self, operators: ModuleType, dtype: ms.Type) -> None:
        super().__init__()
        self.fused = operators.var_unit_heads
        self.bfloat16 = dtype == ms.bfloat16

    def construct(self, qkv_blc: Tensor, scale_h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.fused(qkv_blc, scale_h, self.bfloat16)

    def bprop(
        self,
        qkv_blc: Tensor,
        scale_h: Tensor,
        _out: tuple[Tensor, Tensor, Tensor],
        d_out: tuple[Tensor, Tensor, Tensor],
    ) -> tuple[Tensor, Tensor]:
        b, length, heads, d = d_out[0].shape
        qkv_bl3hd = qkv_blc.astype(ms.float32).reshape(b, length, 3, heads, d)
        d_q_blhd, d_k_blhd, d_v_blhd = (d_out[i].astype(ms.float32) for i in range(3))
        q_unit_blhd, q_rate_blh1 = _unit(qkv_bl3hd[:, :, 0])
        k_unit_blhd, k_rate_blh1 = _unit(qkv_bl3hd[:, :, 1])
        d_scale_h = (d_q_blhd * q_unit_blhd).sum((0, 1, 3))
        d_q_blhd = _orthogonal(q_unit_blhd, d_q_blhd * scale_h.reshape(1, 1, -1, 1)) * q_rate_blh1
        d_k_blhd = _orthogonal(k_unit_blhd, d_k_blhd) * k_rate_blh1
        d_qkv_bl3hd = ops.stack((d_q_blhd, d_k_blhd, d_v_blhd), 2)
        return d_qkv_bl3hd.reshape(qkv_blc.shape).astype(qkv_blc.dtype), d_scale_h


def _unit(x_blhd: Tensor) -> tuple[Tensor, Tensor]:
    """x / max(|x|, 1e-12) for each head, and 1 / max(|x|, 1e-12) (B,L,H,1)."""
    squared_blh1 = (x_blhd * x_blhd).sum(-1, keepdims=True)
    rate_blh1 = ops.rsqrt(ops.maximum(squared_blh1, 1e-24))
    return x_blhd * rate_blh1, rate_blh1


def _orthogonal(unit_blhd: Tensor, d_blhd: Tensor) -> Tensor:
    """The part of d that is orthogonal to the unit vectors."""
    return d_blhd - unit_blhd * (unit_blhd * d_blhd).sum(-1, keepdims=True)
