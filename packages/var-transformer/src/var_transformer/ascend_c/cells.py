"""What the fused operators take, and the adaptive layer norm as a cell with a gradient.

``operators`` is what ``building.load`` returns.
"""

from types import SimpleNamespace

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

    ``f(x (B,L,C), scale (B,1,C), shift (B,1,C)) -> (B,L,C)`` of the type of scale and shift; x is
    of that type or float32; C as ``takes_width``. The gradient is that of ``composed``, a cell for
    the same, which is computed again for it: of the norm nothing is kept.
    """

    def __init__(self, operators: SimpleNamespace, composed: nn.Cell) -> None:
        super().__init__()
        self.fused = operators.var_modulated_norm
        self.composed = composed
        self.gradient = ops.GradOperation(get_all=True, sens_param=True)

    def construct(self, x_blc: Tensor, scale_b1c: Tensor, shift_b1c: Tensor) -> Tensor:
        return self.fused(x_blc, scale_b1c, shift_b1c)

    def bprop(
        self, x_blc: Tensor, scale_b1c: Tensor, shift_b1c: Tensor, _y: Tensor, d_y: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        # not before the gradient comes, or what is computed again would be kept until then
        x_blc = ops.depend(x_blc, d_y)
        return self.gradient(self.composed)(x_blc, scale_b1c, shift_b1c, d_y)
