"""Data parallelism over the workers that ``msrun`` starts; a single process needs none of it.

Everything here works on one process too, where it returns at once.
"""

import hashlib
import os
from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, communication, nn, ops
from var_tokenizer.common import InputError


def start() -> None:
    """Joins the other workers, where ``msrun`` started this process; to be called first.

    The scheduler that ``msrun`` starts beside the workers ends in here.
    """
    if "MS_ROLE" in os.environ and not communication.GlobalComm.INITED:
        # A collective of the CPU gives up after 30 s, which worker 0 takes to sample or to save;
        # a worker that is dead is noticed by the watch.
        os.environ.setdefault("MS_CPU_COMM_OP_TIMEOUT", str(24 * 3600))
        ms.set_context(mode=ms.GRAPH_MODE)
        communication.init()
        ms.set_context(mode=ms.PYNATIVE_MODE)  # as in a single process; the models compile by jit


def size() -> int:
    """The number of workers."""
    return communication.get_group_size() if communication.GlobalComm.INITED else 1


def rank() -> int:
    """The number of this worker, from 0; worker 0 alone writes files."""
    return communication.get_rank() if communication.GlobalComm.INITED else 0


def share(batch: int, accumulation: int = 1) -> int:
    """Images that a worker takes at a time of ``batch`` images a step.

    Raises InputError for a batch that workers and accumulation do not divide.
    """
    if batch % (size() * accumulation):
        raise InputError(
            f"batch is {batch}; expected a multiple of {size() * accumulation}, "
            f"{size()} worker(s) times {accumulation} accumulated part(s)"
        )
    return batch // (size() * accumulation)


def gather(array: np.ndarray) -> np.ndarray:
    """(workers, ...): the arrays of all workers, which have one shape and dtype, by rank."""
    array = np.ascontiguousarray(array)
    if size() == 1:
        return array[None]
    # as int32: the collectives of the CPU lack float64 and drop the upper half of an int64
    raw = np.zeros(-(-array.nbytes // 4), np.int32)
    raw.view(np.uint8)[: array.nbytes] = array.reshape(-1).view(np.uint8)
    rows = ops.AllGather()(Tensor(raw[None])).asnumpy()
    data = np.ascontiguousarray(rows).view(np.uint8)[:, : array.nbytes]
    return np.ascontiguousarray(data).view(array.dtype).reshape(size(), *array.shape)


def all_reduce_sum(array: np.ndarray) -> np.ndarray:
    """The sum of the arrays of all workers, added in the order of their ranks."""
    return np.sum(gather(array), axis=0, dtype=np.asarray(array).dtype)


def broadcast(array: np.ndarray, root: int) -> np.ndarray:
    """The float32 array of worker ``root``; all workers bring one of its shape."""
    if size() == 1:
        return array
    return ops.Broadcast(root)((Tensor(array),))[0].asnumpy()


def any_worker(flag: bool) -> bool:
    """Whether ``flag`` is true on any worker."""
    return bool(gather(np.array(flag)).any())


def wait_for_all() -> None:
    """Returns when every worker is here."""
    gather(np.zeros(1, np.int32))


def synchronize(parameters: Sequence[Parameter]) -> None:
    """Gives every worker the values of worker 0, and makes sure by their hash.

    Raises RuntimeError where they differ nevertheless.
    """
    if size() == 1:
        return
    for parameter in parameters:
        ops.assign(parameter, Tensor(broadcast(parameter.asnumpy(), 0)))
    check_equal(parameters)


def check_equal(parameters: Sequence[Parameter]) -> None:
    """Raises RuntimeError unless every worker has the same values, bit by bit."""
    digest = hashlib.sha256()
    for parameter in parameters:
        digest.update(np.ascontiguousarray(parameter.asnumpy()))
    hashes = gather(np.frombuffer(digest.digest(), np.uint8))
    different = [r for r in range(size()) if (hashes[r] != hashes[0]).any()]
    if different:
        raise RuntimeError(f"the weights of workers {different} are not those of worker 0")


def part_like(like: Tensor, flat: Tensor, offset: int) -> Tensor:
    """What begins at ``offset`` of a flat tensor, in the shape of ``like``; inside a graph."""
    return ops.strided_slice(flat, (offset,), (offset + like.size,), (1,)).reshape(like.shape)


_ravel = ops.MultitypeFuncGraph("ravel")
_part_like = ops.MultitypeFuncGraph("part_like")
_mean = ops.MultitypeFuncGraph("mean")


@_ravel.register("Tensor")
def _(gradient: Tensor) -> Tensor:
    return gradient.reshape(-1)


@_part_like.register("Tensor", "Tensor", "Number")
def _(flat: Tensor, gradient: Tensor, offset: int) -> Tensor:
    return part_like(gradient, flat, offset)


@_mean.register("Function", "Number", "Tensor")
def _(total: ops.Primitive, share: float, gradient: Tensor) -> Tensor:
    return total(gradient) * share


class AllReduceMean(nn.Cell):
    """The mean of the gradients of all workers, inside a compiled step."""

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        """parameters: whose gradients will come."""
        super().__init__()
        self.workers = size()
        self.fraction = 1.0 / self.workers
        # A collective of the CPU costs 5 ms however small: one for all. Others are fused by
        # the compiler, which needs no copy.
        self.flat = ms.get_context("device_target") == "CPU"
        sizes = [int(p.size) for p in parameters]
        self.offsets = tuple(
            int(end) - size for end, size in zip(np.cumsum(sizes), sizes, strict=True)
        )
        self.map = ops.HyperMap()
        if self.workers > 1:
            self.total = ops.AllReduce()
            if not self.flat:
                self.total.add_prim_attr("fusion", 1)

    def construct(self, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """As many gradients, averaged over the workers."""
        if self.workers == 1:
            return gradients
        if not self.flat:
            return self.map(ops.partial(_mean, self.total, self.fraction), gradients)
        mean = self.total(ops.concat(self.map(_ravel, gradients))) * self.fraction
        return self.map(ops.partial(_part_like, mean), gradients, self.offsets)
