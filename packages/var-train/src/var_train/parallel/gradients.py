"""The mean of gradients over the workers, inside a compiled step."""

from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from var_train.operators import part
from var_train.parallel import workers

_ravel = ops.MultitypeFuncGraph("ravel")
_part_like = ops.MultitypeFuncGraph("part_like")
_mean = ops.MultitypeFuncGraph("mean")
_weighted = ops.MultitypeFuncGraph("weighted")


def part_like(like: Tensor, flat: Tensor, offset: int) -> Tensor:
    """The part of a flat tensor that begins at ``offset``, in the shape of ``like``."""
    return part(flat, offset, like.size).reshape(like.shape)


@_ravel.register("Tensor")
def _ravel_gradient(gradient: Tensor) -> Tensor:
    return gradient.reshape(-1)


@_part_like.register("Tensor", "Tensor", "Number")
def _part_like_gradient(flat: Tensor, gradient: Tensor, offset: int) -> Tensor:
    return part_like(gradient, flat, offset)


@_mean.register("Function", "Number", "Tensor")
def _mean_gradient(all_reduce: ops.Primitive, fraction: float, gradient: Tensor) -> Tensor:
    return all_reduce(gradient) * fraction


@_weighted.register("Number", "Tensor")
def _weighted_gradient(weight: float, gradient: Tensor) -> Tensor:
    return gradient * weight


class AveragedGradient(nn.Cell):
    """The array itself, whose gradient is averaged over the workers during the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.all_reduce = ops.AllReduce()
        self.fraction = 1.0 / workers.size()

    def construct(self, x: Tensor) -> Tensor:
        return x

    def bprop(self, x: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor]:
        return (self.all_reduce(dout) * self.fraction,)


class AllReduceMean(nn.Cell):
    """Averages gradients over the workers."""

    def __init__(self, parameters: Sequence[Parameter], weight: float = 1.0) -> None:
        """parameters: those that the gradients belong to. weight: of this worker's gradients in the
        mean, as in ``workers.Share``.
        """
        super().__init__()
        self.weight = weight
        self.workers = workers.size()
        self.fraction = 1.0 / self.workers
        # On a CPU a collective costs 5 ms however small it is: use a single one for all gradients.
        # Elsewhere the compiler fuses them, without a copy.
        self.flat = ms.get_context("device_target") == "CPU"
        sizes = [int(p.size) for p in parameters]
        self.offsets = tuple(
            int(end) - size for end, size in zip(np.cumsum(sizes), sizes, strict=True)
        )
        self.map = ops.HyperMap()
        if self.workers > 1:
            self.all_reduce = ops.AllReduce()
            if not self.flat:
                self.all_reduce.add_prim_attr("fusion", 1)

    def construct(self, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The gradients, averaged over the workers."""
        if self.workers == 1:
            return gradients
        if self.weight != 1:
            gradients = self.map(ops.partial(_weighted, self.weight), gradients)
        if not self.flat:
            return self.map(ops.partial(_mean, self.all_reduce, self.fraction), gradients)
        mean = self.all_reduce(ops.concat(self.map(_ravel, gradients))) * self.fraction
        return self.map(ops.partial(_part_like, mean), gradients, self.offsets)
