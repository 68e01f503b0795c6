"""Checkpoints of a training: one .safetensors file each, with all that it needs to continue.

Arrays are named GROUP/NAME as the stage in var-train gives them; NAME is the published one:

    KIND/NAME                      the weights; KIND is "tokenizer" or "transformer"
    ema/ema.NAME                   their moving averages, if the training keeps any
    optimizer/first_moment.NAME    AdamW's moments
    optimizer/second_moment.NAME

Convolutions are (out, rows, columns, in) in all of them, as the models compute with them. The
metadata holds the step, the rest of the state as JSON, whether it was the best so far, what a
native file of the model says besides its weights, and a SHA-256 of everything.
"""

import errno
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from var_tokenizer.common.errors import InputError, quoted
from var_tokenizer.common.files import replacing
from var_tokenizer.common.safetensors import (
    TensorHeader,
    arrays_checksum,
    read_header,
    sorted_checksum,
    unique_fields,
    write_tensors,
)

AVERAGES, FIRST, SECOND = "ema/ema.", "optimizer/first_moment.", "optimizer/second_moment."

_OWN = ("step", "state", "best", "sha256")
_DAMAGED = (SafetensorError, OSError, ValueError, KeyError, TypeError, RecursionError)


@dataclass(frozen=True)
class Snapshot:
    """A training between two steps.

    step: finished steps. arrays: by name; of a file, each is read when it is asked for. state: the
    rest, in JSON's types. model: the metadata of a native file of its model, ``native_metadata``.
    """

    step: int
    arrays: Mapping[str, np.ndarray]
    state: dict[str, Any]
    model: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SnapshotHeader:
    """A checkpoint whose arrays are not read; ``check`` compares its checksum."""

    path: Path
    step: int
    state: dict[str, Any]
    best: bool
    model: dict[str, str]
    tensors: dict[str, TensorHeader]

    @property
    def kind(self) -> str:
        """ "tokenizer" or "transformer"; the file may claim anything else."""
        return self.model["kind"]

    @property
    def averaged(self) -> bool:
        """Whether the training keeps moving averages of its weights."""
        return any(name.startswith(AVERAGES) for name in self.tensors)

    def group(self, prefix: str) -> dict[str, TensorHeader]:
        """Published name -> tensor in its published layout, of the arrays under ``prefix``."""
        found = {}
        for name, tensor in self.tensors.items():
            if not name.startswith(prefix):
                continue
            if self.kind == "tokenizer" and len(tensor.shape) == 4:
                shape = tuple(tensor.shape[axis] for axis in (0, 3, 1, 2))
                tensor = replace(tensor, shape=shape, channels_last=True)
            found[name.removeprefix(prefix)] = tensor
        return found

    def weights(self) -> dict[str, TensorHeader]:
        """The weights to use, by published name: the averaged ones, where there are some."""
        return self.group(f"{self.kind}/") | self.group(AVERAGES)

    def check(self) -> None:
        """Raises InputError unless the file is whole. Reads one array after another."""
        try:
            with safe_open(self.path, framework="numpy") as file:
                metadata = file.metadata()
                arrays = ((name, file.get_tensor(name)) for name in sorted(file.keys()))
                found = sorted_checksum(arrays, _head(self.step, metadata["state"], self.model))
            if found != metadata["sha256"]:
                raise OSError(errno.EIO, "the checksum differs")
        except _DAMAGED as error:
            raise InputError(f"{quoted(self.path)}: damaged ({quoted(str(error))})") from error

    def __str__(self) -> str:
        """Which weights those are, for a log."""
        which = "its averaged weights" if self.averaged else "its weights; it keeps no averages"
        return f"{quoted(self.path)}: a training after step {self.step}: {which}"


def snapshot_folder(run: Path, kind: str) -> Path:
    """Where a run that writes into ``run`` has its checkpoints of a model."""
    return run / "checkpoints" / kind


def snapshot_name(step: int) -> str:
    """The name of a checkpoint's file."""
    return f"step-{step:09d}.safetensors"


def snapshots_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder, from the oldest to the newest."""
    return sorted(folder.glob("step-*.safetensors"))


def write_snapshot(path: Path, snapshot: Snapshot, best: bool = False) -> None:
    """Writes a checkpoint; when it returns, the file is on disk.

    A process that is killed before that leaves what was there. Raises InputError if it cannot be
    written (a full disk, say).
    """
    arrays = {name: np.ascontiguousarray(a) for name, a in snapshot.arrays.items()}
    state = json.dumps(snapshot.state)
    metadata = dict(snapshot.model) | {
        "step": str(snapshot.step),
        "state": state,
        "best": json.dumps(best),
    }
    head = _head(snapshot.step, state, snapshot.model)
    with replacing(path) as temporary, ThreadPoolExecutor(1) as beside:
        write_tensors(temporary, arrays, metadata, beside.submit(arrays_checksum, arrays, head))
        _sync(temporary)
    _sync(path.parent)


def read_snapshot(path: Path) -> Snapshot:
    """A whole checkpoint, whose arrays stay in the file until they are asked for.

    Raises InputError if it is damaged, which its checksum shows.
    """
    try:
        arrays = _Stored(safe_open(path, framework="numpy"))
        metadata = arrays.file.metadata()
        step, model = int(metadata["step"]), _model(metadata)
        if arrays_checksum(arrays, _head(step, metadata["state"], model)) != metadata["sha256"]:
            raise OSError(errno.EIO, "the checksum differs")
        return Snapshot(step, arrays, _parse_state(metadata["state"]), model)
    except _DAMAGED as error:
        raise InputError(f"{quoted(path)}: damaged ({quoted(str(error))})") from error


class _Stored(Mapping[str, np.ndarray]):
    """The arrays of a file, which stays open: memory holds those that a reader keeps."""

    def __init__(self, file: Any) -> None:  # noqa: ANN401 (safetensors does not export its type)
        self.file = file
        self._names = dict.fromkeys(file.keys())

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        return self.file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def read_snapshot_header(path: Path) -> SnapshotHeader:
    """A checkpoint without its arrays. Raises InputError if it has no readable header."""
    metadata, tensors = read_header(path)
    return _header(path, metadata, tensors)


def is_snapshot(metadata: Mapping[str, str]) -> bool:
    """Whether a .safetensors file with this metadata is a checkpoint of a training."""
    return {"step", "state", "sha256"} <= metadata.keys()


def read_model_header(
    path: str | os.PathLike[str],
) -> tuple[dict[str, str], dict[str, TensorHeader], SnapshotHeader | None]:
    """``read_header`` of a file that holds a model: of a checkpoint, what a native file would say.

    The checkpoint itself is the third. Raises InputError for a file that is not valid.
    """
    metadata, tensors = read_header(path)
    if not is_snapshot(metadata):
        return metadata, tensors, None
    header = _header(Path(path), metadata, tensors)
    if "kind" not in header.model:
        raise InputError(
            f"{quoted(path)}: a checkpoint of a training that does not describe its model; "
            "expected one of this version, as the training writes when it goes on"
        )
    return header.model, header.weights(), header


def _header(
    path: Path, metadata: Mapping[str, str], tensors: dict[str, TensorHeader]
) -> SnapshotHeader:
    try:
        step, state = int(metadata["step"]), _parse_state(metadata["state"])
        best = json.loads(metadata["best"]) is True
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{quoted(path)}: damaged ({quoted(str(error))})") from error
    return SnapshotHeader(path, step, state, best, _model(metadata), tensors)


def _model(metadata: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in metadata.items() if name not in _OWN}


def _head(step: int, state: str, model: Mapping[str, str]) -> str:
    """What the checksum covers besides the arrays."""
    described = json.dumps(dict(model), sort_keys=True) if model else ""  # none up to 0.1.0
    return f"{step} {state}{described}"


def _parse_state(text: str) -> dict[str, Any]:
    """The state of a checkpoint, its settings by the names that they have now."""

    def renamed(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        entries = unique_fields(pairs)
        if {"learning_rate", "schedule"} <= entries.keys():  # AdamWConfig, up to version 0.1.0
            entries["rate_schedule"] = entries.pop("schedule")
        return entries

    state = json.loads(text, object_pairs_hook=renamed)
    if not isinstance(state, dict):
        raise ValueError(f"its state is a {type(state).__name__}")
    return state


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
