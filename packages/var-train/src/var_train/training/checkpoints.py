"""Checkpoints of a run, each the file of a ``Snapshot``: the last few and the best stay."""

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Parameter, Tensor, ops
from var_tokenizer.common import (
    InputError,
    Snapshot,
    TensorHeader,
    check_tensors,
    quoted,
    read_snapshot,
    read_snapshot_header,
    remove_leftovers,
    snapshot_folder,
    snapshot_name,
    snapshots_in,
    write_snapshot,
)

log = logging.getLogger(__name__)


class CheckpointFolder:
    """The checkpoints of one stage. One process writes them, any number may read."""

    def __init__(self, folder: Path, keep: int = 3) -> None:
        """keep: how many of the newest stay, at least 1; the best stays, too."""
        self.folder = Path(folder)
        self.keep = keep

    def save(self, snapshot: Snapshot, best: bool = False) -> Path:
        """Writes ``snapshot`` and removes old checkpoints.

        When it returns, the file is on disk; a process that is killed before that leaves the
        earlier checkpoints as they were. best: this is the best so far.

        Raises InputError if it cannot be written (a full disk, say).
        """
        path = self.folder / snapshot_name(snapshot.step)
        write_snapshot(path, snapshot, best)
        self._prune()
        return path

    def newest(self) -> Snapshot | None:
        """The newest checkpoint that is whole; None if there are none.

        Skips a damaged one with a warning. Raises InputError if all are damaged.
        """
        paths = self._paths()
        for path in reversed(paths):
            try:
                return read_snapshot(path)
            except InputError as error:
                log.warning("%s; falling back to the one before", error)
        if paths:
            raise InputError(
                f"{quoted(self.folder)}: no checkpoint is whole; expected one of {len(paths)} "
                "(--no-resume starts from the beginning)"
            )
        return None

    def peek(self) -> tuple[int, Mapping[str, Any]] | None:
        """Step and state of the newest checkpoint, without reading (or checking) its arrays.

        None if there is none with a readable header.
        """
        for path in reversed(self._paths()):
            try:
                header = read_snapshot_header(path)
                return header.step, header.state
            except InputError:
                continue
        return None

    def best(self) -> Path | None:
        """The file of the newest checkpoint that was the best when it was written."""
        return next((path for path in reversed(self._paths()) if _is_best(path)), None)

    def clear(self) -> None:
        """Removes all checkpoints."""
        for path in self._paths():
            path.unlink(missing_ok=True)
        remove_leftovers(self.folder)

    def _paths(self) -> list[Path]:
        return snapshots_in(self.folder)

    def _prune(self) -> None:
        stay = {self.best(), *self._paths()[-self.keep :]}
        for path in self._paths():
            if path not in stay:
                path.unlink(missing_ok=True)
        remove_leftovers(self.folder)


def check_disk(run: Path, needed: Mapping[str, tuple[int, int]], keep: int) -> None:
    """Raises InputError unless the disk has room for the checkpoints of a run.

    run: its folder, which need not exist. needed: of each stage, how many it will have at once and
    their size. keep: of these, the newest that stay. The ones that are there count as room.
    """
    missing = 0
    for stage, (count, nbytes) in needed.items():
        there = sum(path.stat().st_size for path in snapshots_in(snapshot_folder(run, stage)))
        missing += max(count * nbytes - there, 0)
    place = next(path for path in (run.absolute(), *run.absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free
    if missing > free:
        raise InputError(
            f"{free / 1e9:.3f} GB are free in {quoted(run)}; expected {missing / 1e9:.3f} for the "
            f"checkpoints: the newest {keep}, the best, and one that is being written (--loop.keep "
            "takes a smaller number)"
        )


class ArraysOnDemand(Mapping[str, np.ndarray]):
    """Arrays by name, each made whenever it is asked for: not all of them are in memory at once.

    Where it takes all workers to make one, all ask for the same ones in the same order.
    """

    def __init__(self, makers: Mapping[str, Callable[[], np.ndarray]]) -> None:
        self._makers = makers

    @classmethod
    def joined(cls, *parts: Mapping[str, np.ndarray]) -> "ArraysOnDemand":
        """The arrays of all ``parts``."""
        return cls({name: partial(part.__getitem__, name) for part in parts for name in part})

    def __getitem__(self, name: str) -> np.ndarray:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


def parameter_arrays(prefix: str, parameters: Sequence[Parameter]) -> dict[str, np.ndarray]:
    """``prefix/name`` -> array, for a ``Snapshot``."""
    return {f"{prefix}/{p.name}": p.asnumpy() for p in parameters}


def restore_parameters(
    prefix: str, parameters: Sequence[Parameter], arrays: Mapping[str, np.ndarray]
) -> None:
    """Restores what ``parameter_arrays`` returned.

    Raises InputError unless ``arrays`` has exactly these names and shapes under ``prefix``.
    """
    names = [name for name in arrays if name.startswith(f"{prefix}/")]
    found = {name: TensorHeader("", arrays[name].shape, 0) for name in names}
    expected = {f"{prefix}/{p.name}": tuple(p.shape) for p in parameters}
    check_tensors("checkpoint", expected, found)
    for parameter in parameters:
        # not set_data, after which compiled graphs would keep the old data
        ops.assign(parameter, Tensor(arrays[f"{prefix}/{parameter.name}"]))


def _is_best(path: Path) -> bool:
    try:
        return read_snapshot_header(path).best
    except InputError:
        return False
