"""What losses and updates compute in another form on an Ascend: by aclnn kernels, not by acl ones.

CANN compiles an acl kernel when it first meets it, and again for each new shape.
"""

from collections.abc import Sequence

import mindspore as ms
from mindspore import Parameter, Tensor, mint, ops
from mindspore.ops import auto_generate, constexpr

_copy = auto_generate.InplaceCopy()


@constexpr
def on_ascend() -> bool:
    """Whether graphs compiled now run on an Ascend."""
    return ms.get_context("device_target") == "Ascend"


# On a CPU, MindSpore adds up a large array in as many parts as were fastest in a trial, so the last
# bits follow from the clock. Rows are added up in one order, and there are few enough of them.
def total(x: Tensor) -> Tensor:
    """The sum of all elements, ()."""
    if on_ascend():
        return mint.sum(x)
    return x.sum(-1).sum() if x.ndim > 1 else x.sum()


def mean(x: Tensor) -> Tensor:
    """The mean of all elements, ()."""
    if on_ascend():
        return mint.mean(x)
    return x.mean(-1).mean() if x.ndim > 1 else x.mean()


def means_over(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """The mean over some axes, which stay."""
    return mint.mean(x, axes, True) if on_ascend() else x.mean(axes, keep_dims=True)


def mean_magnitude(x: Tensor) -> Tensor:
    """The mean of the absolute values, ()."""
    return mean(mint.abs(x) if on_ascend() else x.abs())


def sum_of_scalars(scalars: Sequence[Tensor]) -> Tensor:
    """The sum of several (), ()."""
    return mint.sum(mint.stack(scalars)) if on_ascend() else ops.addn(scalars)


def three_parts(x_3n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three parts of an array along its first axis, without that axis."""
    if on_ascend():
        one, two, three = mint.split(x_3n, 1, 0)
        shape = x_3n.shape[1:]
        return one.reshape(shape), two.reshape(shape), three.reshape(shape)
    return x_3n[0], x_3n[1], x_3n[2]


def part(flat: Tensor, offset: int, size: int) -> Tensor:
    """The ``size`` elements of a flat array that begin at ``offset``."""
    if on_ascend():
        return mint.narrow(flat, 0, offset, size)
    return ops.strided_slice(flat, (offset,), (offset + size,), (1,))


def store(parameter: Parameter, values: Tensor) -> Tensor:
    """Writes values to a parameter, in a graph; what depends on the result comes after it."""
    return _copy(parameter, values) if on_ascend() else ops.assign(parameter, values)
