"""Checkpoints of a run: atomic and checksummed; the last few and the best stay.

A checkpoint is one safetensors file with the arrays of a ``Snapshot``. Its metadata holds the step,
the rest of the state as JSON, and a SHA-256 of everything.
"""

import errno
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Parameter, Tensor, ops
from safetensors import SafetensorError, safe_open
from var_tokenizer.common import (
    InputError,
    arrays_checksum,
    check_tensors,
    quoted,
    replacing,
    write_tensors,
)

log = logging.getLogger(__name__)

_DAMAGED = (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError)


@dataclass(frozen=True)
class Snapshot:
    """Everything a stage needs to continue.

    step: finished steps. arrays: by name. state: the rest, in JSON's types.
    """

    step: int
    arrays: dict[str, np.ndarray]
    state: dict[str, Any]


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
        path = self.folder / f"step-{snapshot.step:09d}.safetensors"
        arrays = {name: np.ascontiguousarray(a) for name, a in snapshot.arrays.items()}
        state = json.dumps(snapshot.state)
        metadata = {
            "step": str(snapshot.step),
            "state": state,
            "best": json.dumps(best),
            "sha256": arrays_checksum(arrays, f"{snapshot.step} {state}"),
        }
        try:
            with replacing(path) as temporary:
                write_tensors(temporary, arrays, metadata)
                _sync(temporary)
            _sync(self.folder)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{quoted(path)}: cannot write this checkpoint: {error}") from error
        self._prune()
        return path

    def newest(self) -> Snapshot | None:
        """The newest checkpoint that is whole; None if there are none.

        Skips a damaged one with a warning. Raises InputError if all are damaged.
        """
        paths = self._paths()
        for path in reversed(paths):
            try:
                return _read(path)
            except _DAMAGED as error:
                log.warning(
                    "%s: damaged (%s); falling back to the one before",
                    quoted(path),
                    quoted(str(error)),
                )
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
                with safe_open(path, framework="numpy") as file:
                    metadata = file.metadata()
                return int(metadata["step"]), _parse_state(metadata["state"])
            except _DAMAGED:
                continue
        return None

    def best(self) -> Path | None:
        """The file of the newest checkpoint that was the best when it was written."""
        return next((path for path in reversed(self._paths()) if _is_best(path)), None)

    def clear(self) -> None:
        """Removes all checkpoints."""
        for path in (*self._paths(), *self._leftovers()):
            path.unlink(missing_ok=True)

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("step-*.safetensors"))

    def _leftovers(self) -> list[Path]:
        """Temporary files of processes that were killed during a save."""
        return sorted(self.folder.glob(".step-*.safetensors"))

    def _prune(self) -> None:
        stay = {self.best(), *self._paths()[-self.keep :]}
        for path in (*self._paths(), *self._leftovers()):
            if path not in stay:
                path.unlink(missing_ok=True)


def parameter_arrays(prefix: str, parameters: Sequence[Parameter]) -> dict[str, np.ndarray]:
    """``prefix/name`` -> array, for a ``Snapshot``."""
    return {f"{prefix}/{p.name}": p.asnumpy() for p in parameters}


def restore_parameters(
    prefix: str, parameters: Sequence[Parameter], arrays: Mapping[str, np.ndarray]
) -> None:
    """Restores what ``parameter_arrays`` returned.

    Raises InputError unless ``arrays`` has exactly these names and shapes under ``prefix``.
    """
    found = {n: a for n, a in arrays.items() if n.startswith(f"{prefix}/")}
    expected = {f"{prefix}/{p.name}": tuple(p.shape) for p in parameters}
    check_tensors("checkpoint", expected, found)
    for parameter in parameters:
        # not set_data, after which compiled graphs would keep the old data
        ops.assign(parameter, Tensor(found[f"{prefix}/{parameter.name}"]))


def _read(path: Path) -> Snapshot:
    with safe_open(path, framework="numpy") as file:
        metadata = file.metadata()
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    step = int(metadata["step"])
    if arrays_checksum(arrays, f"{step} {metadata['state']}") != metadata["sha256"]:
        raise OSError(errno.EIO, "the checksum differs")
    return Snapshot(step, arrays, _parse_state(metadata["state"]))


def _parse_state(text: str) -> dict[str, Any]:
    """The state of a checkpoint, its settings by the names that they have now."""

    def renamed(entries: dict[str, Any]) -> dict[str, Any]:
        if {"learning_rate", "schedule"} <= entries.keys():  # AdamWConfig, up to version 0.1.0
            entries["rate_schedule"] = entries.pop("schedule")
        return entries

    return json.loads(text, object_hook=renamed)


def _is_best(path: Path) -> bool:
    try:
        with safe_open(path, framework="numpy") as file:
            return json.loads(file.metadata()["best"])
    except _DAMAGED:
        return False


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
