"""The workers of a distributed run, which ``msrun`` starts, and what they exchange.

Everything here works in a single process, too, where it returns at once.
"""

import ctypes
import hashlib
import json
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, communication, ops
from var_tokenizer.common import InputError

LAUNCHER = "VAR_LAUNCHER"
"""The environment variable that holds the process of ``var_train.launch``, if it started this."""

_PR_SET_PDEATHSIG = 1  # of Linux's prctl
_LONGEST_TEXT = 4096  # bytes of a message


def start() -> None:
    """Joins the other workers if ``msrun`` started this process; call it first.

    The scheduler, which ``msrun`` starts along with the workers, never returns from here.
    """
    if "MS_ROLE" in os.environ and not communication.GlobalComm.INITED:
        # A collective on the CPU gives up after 30 s, but worker 0 may take longer to sample or
        # to save. The watch notices a dead worker.
        os.environ.setdefault("MS_CPU_COMM_OP_TIMEOUT", str(24 * 3600))
        _end_with_launcher()
        # Python would handle a signal after ``init``, which may wait long for the others
        handlers = {n: signal.signal(n, signal.SIG_DFL) for n in (signal.SIGINT, signal.SIGTERM)}
        if os.environ["MS_ROLE"] == "MS_SCHED":
            # terminals and SLURM signal to all processes: workers still need this one to save
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            if LAUNCHER in os.environ:  # which kills it in the end
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
        ms.set_context(mode=ms.GRAPH_MODE)
        communication.init()
        for number, handler in handlers.items():
            signal.signal(number, handler)
        ms.set_context(mode=ms.PYNATIVE_MODE)  # as in a single process; models compile with ms.jit


def _end_with_launcher() -> None:
    """Lets the system kill this process when ``var_train.launch``, which started it, dies."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is not None:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if not Path("/proc", launcher).exists():  # it died before
            sys.exit(1)


@contextmanager
def leaving() -> Iterator[None]:
    """Ends a worker of ``var_train.launch`` where the block ends, with the block's exit code.

    Any other process goes on. MindSpore's threads for the network may crash as a process ends in
    the usual way (once in 400 times), which would look like a death, and hide why it ended.
    ``msrun``'s scheduler waits for that end; that of ``launch`` does not.
    """
    try:
        yield
    except SystemExit as end:
        if isinstance(end.code, int):
            _end_here(end.code)
        raise
    _end_here(0)


def _end_here(code: int) -> None:
    # --help has a stand-in of MindSpore, which is true but not True
    if LAUNCHER in os.environ and communication.GlobalComm.INITED is True and size() > 1:
        logging.shutdown()
        with suppress(OSError):  # nobody reads it any more
            sys.stdout.flush()
        os._exit(code)


def size() -> int:
    """The number of workers."""
    return communication.get_group_size() if communication.GlobalComm.INITED else 1


def rank() -> int:
    """The number of this worker, from 0. Only worker 0 writes files."""
    return communication.get_rank() if communication.GlobalComm.INITED else 0


class Share(NamedTuple):
    """The images of a step's batch that this worker computes at once."""

    images: slice
    """Where they are in the batch."""
    weight: float
    """Their number, divided by that of an even share: 1 if the batch can be divided evenly. Means
    over the images of each share, multiplied by it, have the mean of the whole batch as theirs."""


def shares(batch: int, parts: int = 1) -> list[Share]:
    """This worker's images of a step, in ``parts`` that it computes one after another.

    The batch is cut into workers times ``parts`` shares of neighbours, whose numbers of images
    differ by at most one. Raises InputError for a batch with fewer images than that.
    """
    count = size() * parts
    if batch < count:
        raise InputError(
            f"batch is {batch}; expected at least {count}, an image for each of {size()} "
            f"worker(s) times {parts} accumulated part(s)"
        )
    cuts = [batch * n // count for n in range(count + 1)]
    return [
        Share(slice(cuts[n], cuts[n + 1]), (cuts[n + 1] - cuts[n]) * count / batch)
        for n in range(rank(), count, size())
    ]


def gather(array: np.ndarray) -> np.ndarray:
    """(workers, ...): the arrays of all workers, by rank; all have the same shape and dtype."""
    array = np.ascontiguousarray(array)
    if size() == 1:
        return array[None]
    # as int32: collectives on the CPU lack float64 and drop the upper half of an int64
    raw = np.zeros(-(-array.nbytes // 4), np.int32)
    raw.view(np.uint8)[: array.nbytes] = array.reshape(-1).view(np.uint8)
    rows = ops.AllGather()(Tensor(raw[None])).asnumpy()
    data = np.ascontiguousarray(rows).view(np.uint8)[:, : array.nbytes]
    return np.ascontiguousarray(data).view(array.dtype).reshape(size(), *array.shape)


def all_reduce_sum(array: np.ndarray) -> np.ndarray:
    """The sum of the arrays of all workers, added in the order of their ranks."""
    return np.sum(gather(array), axis=0, dtype=np.asarray(array).dtype)


def broadcast(array: np.ndarray, root: int) -> np.ndarray:
    """The float32 array of worker ``root``; every worker passes one of the same shape."""
    if size() == 1:
        return array
    return ops.Broadcast(root)((Tensor(array),))[0].asnumpy()


def any_worker(flag: bool) -> bool:
    """Whether ``flag`` is true on any worker."""
    return bool(gather(np.array(flag)).any())


@contextmanager
def raised_by_all(kind: type[Exception]) -> Iterator[None]:
    """Lets every worker raise, at the end of the block, what one has raised in it of this kind.

    For what may happen to one alone, before the others wait for it in a collective. Every worker
    must come here.
    """
    error: Exception | None = None
    try:
        yield
    except kind as raised:
        error = raised
    if any_worker(error is not None):
        text = ("" if error is None else str(error)).encode()[:_LONGEST_TEXT]
        texts_wn = gather(np.frombuffer(text.ljust(_LONGEST_TEXT), np.uint8))
        said = (row.tobytes().decode(errors="replace").strip() for row in texts_wn)
        raise error or kind(next(filter(None, said)))


def wait_for_all() -> None:
    """Waits until every worker has called it."""
    gather(np.zeros(1, np.int32))


def synchronize(parameters: Sequence[Parameter]) -> None:
    """Gives every worker the values of worker 0, and compares their hashes afterwards.

    Raises RuntimeError if they differ.
    """
    if size() == 1:
        return
    for parameter in parameters:
        ops.assign(parameter, Tensor(broadcast(parameter.asnumpy(), 0)))
    check_equal(parameters)


def check_equal(parameters: Sequence[Parameter]) -> None:
    """Raises RuntimeError unless every worker has the same values, bit for bit."""
    digest = hashlib.sha256()
    for parameter in parameters:
        digest.update(np.ascontiguousarray(parameter.asnumpy()).data)
    hashes = gather(np.frombuffer(digest.digest(), np.uint8))
    different = [r for r in range(size()) if (hashes[r] != hashes[0]).any()]
    if different:
        raise RuntimeError(f"the weights of workers {different} are not those of worker 0")


def check_alike(found: Mapping[str, object]) -> None:
    """Raises InputError on every worker unless all have found the same, in JSON's types, by name.

    Hosts may have copies of their own of what a command names.
    """
    texts = [json.dumps(value, sort_keys=True) for value in found.values()]
    digests = [np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8) for text in texts]
    of_workers_wnb = gather(np.stack(digests))
    differs_wn = (of_workers_wnb != of_workers_wnb[0]).any(2)
    for name, differs_w in zip(found, differs_wn.T, strict=True):
        if differs_w.any():
            raise InputError(
                f"{name}: worker {', '.join(map(str, np.flatnonzero(differs_w)))} has found other "
                "content than worker 0; expected the same on all hosts"
            )
