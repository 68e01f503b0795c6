"""Checkpoints beside the training: a step waits for a copy in memory, a thread writes it."""

import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType

import numpy as np
from mindspore import Parameter
from var_tokenizer.common import InputError, Snapshot, host_memory

from var_train.training.checkpoints import CheckpointFolder

log = logging.getLogger(__name__)

_ALIGNED = 64  # bytes
_NOTABLE = 10**8  # bytes that a user would like to know of


def training_bytes(weights: Sequence[Parameter], averages: bool) -> int:
    """The size of weights, their two moments and, if there are some, their averages in float32."""
    return sum(int(p.size) for p in weights) * 4 * (4 if averages else 3)


class BackgroundSaver:
    """Writes the checkpoints of a stage, one after another, beside its steps.

    What a save raises (a full disk, say), the next call raises, and the block at its end. After
    the block, however it ended, nothing is being written any more.
    """

    def __init__(self, checkpoints: CheckpointFolder, nbytes: int) -> None:
        """nbytes: about how large a checkpoint is."""
        self._checkpoints, self._nbytes = checkpoints, nbytes
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._room: Future[np.ndarray] | None = None
        self._written: Future[object] | None = None

    def __enter__(self) -> "BackgroundSaver":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            self.wait()
        except InputError as failed:
            if error is None:
                raise
            log.warning("%s", failed)
        finally:
            self._thread.shutdown()

    def reserve(self, stage: str) -> None:
        """Takes the memory for copies; call it when the training has taken what it needs.

        Without it, or if less than as much again stays free, saves are no copies, and wait.
        """
        free, needed = host_memory(), self._nbytes
        fits = 2 * needed <= free
        if needed >= _NOTABLE:
            log.info(
                "%s: checkpoints need %.1f GB of memory beside the training, which leaves %.1f GB: "
                "steps %s for them to be written",
                *(stage, needed / 1e9, free / 1e9, "do not wait" if fits else "wait"),
            )
        if fits:
            self._room = self._thread.submit(_touched, needed)

    def save(self, snapshot: Snapshot, best: bool = False) -> None:
        """As ``CheckpointFolder.save``, but for when it is on disk; waits for the save before.

        The arrays may change as soon as this returns.
        """
        self.wait()
        if self._room is None:
            self._checkpoints.save(snapshot, best)
            return
        arrays = _copied(snapshot.arrays, self._room.result())
        state = json.loads(json.dumps(snapshot.state))
        copy = replace(snapshot, arrays=arrays, state=state)
        self._written = self._thread.submit(self._checkpoints.save, copy, best)

    def check(self) -> None:
        """Raises what the last save raised, if it has ended; waits for nothing."""
        if self._written is not None and self._written.done():
            self.wait()

    def wait(self) -> None:
        """Waits until the last save is on disk."""
        if self._written is not None:
            written, self._written = self._written, None
            written.result()


def _touched(nbytes: int) -> np.ndarray:
    """(nbytes,) uint8 that the system has given already, which takes it longer than a copy."""
    return np.full(nbytes, 0, np.uint8)


def _copied(arrays: Mapping[str, np.ndarray], room: np.ndarray) -> dict[str, np.ndarray]:
    """Copies in ``room``; what does not fit into it has memory of its own."""
    copies, end = {}, 0
    for name, array in arrays.items():
        begin = end
        end += -(-array.nbytes // _ALIGNED) * _ALIGNED
        if end <= room.nbytes:
            copy = room[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
        else:
            copy = np.empty_like(array)
        np.copyto(copy, array)
        copies[name] = copy
        del array  # before the next one is made
    return copies
