"""Data parallelism over the workers that ``msrun`` starts; a single process needs none of it.

Everything here works on one process too, where it returns at once.
"""

import hashlib
import os
from collections.abc import Sequence

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, communication, ops
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
        digest.update(np.ascontiguousarray(parameter.asnumpy()).data)
    hashes = gather(np.frombuffer(digest.digest(), np.uint8))
    different = [r for r in range(size()) if (hashes[r] != hashes[0]).any()]
    if different:
        raise RuntimeError(f"the weights of workers {different} are not those of worker 0")
