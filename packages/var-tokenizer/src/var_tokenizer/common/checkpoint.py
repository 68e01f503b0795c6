"""The native file format: safetensors, with the kind of model and its configuration as metadata.

Tensors have their published PyTorch names and layouts, so any reader of safetensors can use a file.
"""

import dataclasses
import hashlib
import itertools
import json
import logging
import os
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np

from var_tokenizer.common import int8, safetensors
from var_tokenizer.common.errors import InputError, quoted
from var_tokenizer.common.files import replacing
from var_tokenizer.common.foreign import conversion, format_of
from var_tokenizer.common.snapshots import SnapshotHeader, read_model_header

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config")

log = logging.getLogger(__name__)


class _Shaped(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


def write_checkpoint(
    path: str | os.PathLike[str],
    kind: str,
    config: "DataclassInstance",
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a native file of ``kind`` ("tokenizer" or "transformer") atomically.

    config: the model's configuration dataclass. tensors: published name -> array. metadata:
    further entries for the file.
    """
    with replacing(path) as temporary:
        safetensors.write_tensors(temporary, tensors, native_metadata(kind, config, metadata))


def native_metadata(
    kind: str, config: "DataclassInstance", metadata: Mapping[str, str] | None = None
) -> dict[str, str]:
    """What a native file says besides its tensors; arguments as of ``write_checkpoint``."""
    return dict(metadata or {}) | {
        "format": "var-mindspore",
        "kind": kind,
        "config": json.dumps(dataclasses.asdict(config)),
    }


@dataclasses.dataclass(frozen=True)
class Checkpoint(Generic[Config]):
    """A native file: its header is read, its tensors are not. metadata: as in the file.

    training: the checkpoint of a training that it is; its model is what the other fields describe.
    scales: of its matrices of int8, by their names.
    """

    path: Path
    config: Config
    metadata: dict[str, str]
    tensors: dict[str, safetensors.TensorHeader]
    training: SnapshotHeader | None = None
    scales: Mapping[str, safetensors.TensorHeader] = dataclasses.field(default_factory=dict)

    def check(self, expected: Iterable[tuple[str, tuple[int, ...]]]) -> None:
        """Raises InputError unless the file holds exactly ``expected`` as floating numbers.

        expected: names and shapes. Call this before building anything from ``config``, which may
        claim any size.
        """
        # a file may claim any number of tensors; a few more than it holds show what is missing
        few = dict(itertools.islice(expected, len(self.tensors) + 100))
        check_tensors(quoted(self.path), few, self.tensors)
        for name, tensor in self.tensors.items():
            if tensor.dtype not in ("F64", "F32", "F16", "BF16") and name not in self.scales:
                raise InputError(
                    f"{quoted(self.path)}: tensor {quoted(name)} has dtype {tensor.dtype}; "
                    "expected floating point"
                )

    def read(self, without: Collection[str] = ()) -> dict[str, np.ndarray]:
        """All tensors but those named in ``without``; floating ones, and int8, as float32.

        Raises InputError for a damaged checkpoint, and for scales of int8 that are none.
        """
        if self.training is not None:
            self.training.check()
            log.info("%s", self.training)
        read = {name: tensor for name, tensor in self.tensors.items() if name not in without}
        arrays = safetensors.read_tensors(self.path, read)
        for name, scales in int8.read_scales(self.path, self.scales).items():
            if name in arrays:
                arrays[name] = int8.widened_from_int8(arrays[name], scales[:, None])
        return arrays


def open_checkpoint(
    path: str | os.PathLike[str], kind: str, config_type: type[Config]
) -> Checkpoint[Config]:
    """Opens a native file of ``kind``, or a checkpoint of a training as one.

    Its tensors are not read or checked yet.

    Raises InputError for a file that is missing, in another format, of another kind, or with a
    configuration that ``config_type`` does not accept.
    """
    path, shown = Path(path), quoted(path)
    if not path.is_file():
        what = "not a file" if path.exists() else "no such file"
        raise InputError(f"{shown}: {what}; expected a {kind} (.safetensors)")
    try:
        found = format_of(path)
    except OSError as error:
        raise InputError(f"{shown}: cannot read it: {error.strerror}") from error
    if found in ("PyTorch", "MindSpore"):
        raise InputError(
            f"{shown}: a {found} checkpoint; expected a native {kind}; this command makes one: "
            f"{conversion(path, kind)}"
        )
    metadata, tensors, training = read_model_header(path)
    if metadata.get("format") != "var-mindspore":
        raise InputError(
            f"{shown}: no var-mindspore configuration in its metadata; expected a native {kind}, "
            f"which this makes from published names: {conversion(path, kind)}"
        )
    if metadata.get("kind") != kind:
        noted = quoted(metadata.get("kind", "model of no kind"))
        raise InputError(f"{shown}: holds a {noted}; expected a {kind}")
    try:
        config = parse_config(metadata.get("config", "null"), config_type)
    except InputError as error:
        raise InputError(f"{shown}: unusable {kind} configuration: {error}") from error
    tensors, scales = int8.split_scales(path, metadata, tensors)
    return Checkpoint(path, config, metadata, tensors, training, scales)


def parse_config(text: str, config_type: type[Config]) -> Config:
    """A configuration from the JSON text in a file, checked by its own class.

    Raises an InputError that says what is wrong. The text may come from anyone.
    """
    try:
        fields = json.loads(text, object_pairs_hook=safetensors.unique_fields)
        if not isinstance(fields, dict):
            raise InputError(f"it is a {type(fields).__name__}; expected an object of fields")
        return config_type(**{name: _tuples(value) for name, value in fields.items()})
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        raise InputError(quoted(str(error))) from error


def noted_checksum(metadata: Mapping[str, str], field: str, source: str) -> str | None:
    """The checksum under ``field`` in a native file's metadata, or None if there is none.

    Raises InputError if it is not a checksum. source: the name of the file in that message.
    """
    checksum = metadata.get(field)
    if checksum is not None and not re.fullmatch("sha256:[0-9a-f]{64}", checksum):
        raise InputError(
            f"{source}: {field} in its metadata is not a checksum; expected sha256: and 64 digits"
        )
    return checksum


def _tuples(value: object) -> object:
    """JSON lists as the tuples that frozen configurations hold."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def check_tensors(
    source: str, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, _Shaped]
) -> None:
    """Raises InputError unless ``found`` has exactly the names and shapes of ``expected``.

    source: the name of the file in the message, already quoted.
    """
    missing = sorted(expected.keys() - found.keys())
    extra = sorted(found.keys() - expected.keys())
    wrong = [
        f"{quoted(name)} {tuple(found[name].shape)}, expected {shape}"
        for name, shape in expected.items()
        if name in found and tuple(found[name].shape) != tuple(shape)
    ]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for what, names in (
            ("missing tensor(s)", missing),
            ("unexpected tensor(s)", [quoted(name) for name in extra]),
            ("tensor(s) of the wrong shape", wrong),
        )
        if names
    ]
    if problems:
        raise InputError(f"{source}: {'; '.join(problems)}")


def weights_checksum(
    tensors: Iterable[tuple[str, tuple[int, ...], Iterable[np.ndarray]]],
) -> str:
    """SHA-256 of weights, ``sha256:`` and 64 hexadecimal digits, the same for any file of them.

    It covers names, shapes and elements in float32, as a model computes with them, sorted by name.
    tensors: for each the published name, the shape and the elements, in one or more pieces.
    """
    digest = hashlib.sha256()
    for name, shape, pieces in sorted(tensors, key=lambda tensor: tensor[0]):
        digest.update(f"{name} F32 {tuple(shape)}\n".encode())
        for piece in pieces:
            digest.update(np.ascontiguousarray(piece, np.float32).reshape(-1).view(np.uint8).data)
    return f"sha256:{digest.hexdigest()}"
