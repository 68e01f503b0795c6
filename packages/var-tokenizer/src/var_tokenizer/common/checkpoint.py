"""The native file format: safetensors with the model's kind and configuration as metadata.

Tensors carry the published PyTorch names and layouts, so any safetensors reader can use a file.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from var_tokenizer.common.errors import InputError, quoted
from var_tokenizer.common.foreign import conversion, format_of

Config = TypeVar("Config")

_NUMPY_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,  # NumPy has no bfloat16: read as bits, widened below
    "I64": np.int64,
    "I32": np.int32,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` and renames it over ``path`` when the block ends.

    Where the block raises, the temporary file is removed and ``path`` stays as it was. The
    suffix is kept, because writers choose a format by it. The file has the permissions that the
    umask leaves. Raises InputError where the folder cannot be written to, or ``path`` is one.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(8)}{path.suffix}")
    try:  # from here on: Ctrl-C may come as soon as the file is there
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # the kernel applies the umask, which cannot be read without setting it for all threads
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except OSError as error:
            raise InputError(f"{quoted(path)}: cannot write here: {error.strerror}") from error
        permissions = os.fstat(handle).st_mode & 0o777
        os.close(handle)
        yield temporary
        temporary.chmod(permissions)  # some writers set their own
        try:
            temporary.replace(path)
        except IsADirectoryError as error:
            raise InputError(f"{quoted(path)}: is a folder; expected a file") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def check_private(folder: Path) -> None:
    """Raises InputError unless ``folder`` is the user's own, and nobody else can write to it.

    What lies in a cache is run, and old parts of it are removed. A link does not count as a
    folder, and others must not be able to put another in its place.
    """
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode):
        raise InputError(f"{quoted(folder)}: no folder; expected one, not a link to one")
    if about.st_uid != os.geteuid():
        raise InputError(f"{quoted(folder)}: belongs to another user; expected a folder of yours")
    if about.st_mode & 0o022:
        raise InputError(f"{quoted(folder)}: others can write to it; expected chmod go-w")
    for parent in folder.resolve().parents:
        mode = parent.stat().st_mode
        if mode & 0o002 and not mode & stat.S_ISVTX:
            raise InputError(f"{quoted(parent)}: everybody can write to it; expected chmod o-w")


def write_checkpoint(
    path: str | os.PathLike[str],
    kind: str,
    config: object,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a native file of ``kind`` ("tokenizer" or "transformer") atomically.

    config: the model's configuration dataclass. tensors: published name -> array. metadata: what
    else the file is to carry.
    """
    metadata = dict(metadata or {}) | {
        "format": "var-mindspore",
        "kind": kind,
        "config": json.dumps(dataclasses.asdict(config)),
    }
    with replacing(path) as temporary:
        save_file({n: np.ascontiguousarray(t) for n, t in tensors.items()}, temporary, metadata)


def read_checkpoint(
    path: str | os.PathLike[str], kind: str, config_type: type[Config]
) -> tuple[Config, dict[str, np.ndarray]]:
    """Configuration and tensors of a native file of ``kind``; floating tensors as float32.

    Raises InputError for a file that is missing, not safetensors, of another kind, or with a
    configuration that ``config_type`` does not accept.
    """
    checkpoint = open_checkpoint(path, kind, config_type)
    return checkpoint.config, checkpoint.read()


@dataclasses.dataclass(frozen=True)
class TensorHeader:
    """What a file says of a tensor. begin: its first byte, from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int


@dataclasses.dataclass(frozen=True)
class Checkpoint(Generic[Config]):
    """A native file whose header is read, but no tensor. metadata: as the file has it."""

    path: Path
    config: Config
    metadata: dict[str, str]
    tensors: dict[str, TensorHeader]

    def check(self, expected: Iterable[tuple[str, tuple[int, ...]]]) -> None:
        """Raises InputError unless the file holds exactly ``expected`` as floating numbers.

        expected: names and shapes. Call this before anything is built of ``config``: what a file
        claims is held against what it holds.
        """
        # however much is claimed, a few more than there are will do to say what is missing
        few = dict(itertools.islice(expected, len(self.tensors) + 100))
        check_tensors(quoted(self.path), few, self.tensors)
        for name, tensor in self.tensors.items():
            if tensor.dtype not in ("F64", "F32", "F16", "BF16"):
                raise InputError(
                    f"{quoted(self.path)}: tensor {quoted(name)} has dtype {tensor.dtype}; "
                    "expected floating point"
                )

    def read(self) -> dict[str, np.ndarray]:
        """All tensors; floating ones as float32."""
        return read_tensors(self.path, self.tensors)


def open_checkpoint(
    path: str | os.PathLike[str], kind: str, config_type: type[Config]
) -> Checkpoint[Config]:
    """A native file of ``kind``, its tensors not yet read or checked.

    Raises InputError for a file that is missing, in another format, of another kind, or with a
    configuration that ``config_type`` does not accept.
    """
    path, shown = Path(path), quoted(path)
    if not path.is_file():
        what = "is no file" if path.exists() else "no such file"
        raise InputError(f"{shown}: {what}; expected a {kind} (.safetensors)")
    try:
        found = format_of(path)
    except OSError as error:
        raise InputError(f"{shown}: cannot read it: {error.strerror}") from error
    if found in ("PyTorch", "MindSpore"):
        raise InputError(
            f"{shown}: a {found} checkpoint; expected a native {kind}, which this makes of it: "
            f"{conversion(path, found, kind)}"
        )
    metadata, tensors = read_header(path)
    if metadata.get("format") != "var-mindspore":
        if {"step", "state", "sha256"} <= metadata.keys():
            raise InputError(
                f"{shown}: a checkpoint of a training that goes on; expected the {kind} that it "
                "writes at its end"
            )
        raise InputError(
            f"{shown}: no var-mindspore configuration in its metadata; expected a native {kind}, "
            f"which this makes of published names: {conversion(path, 'safetensors', kind)}"
        )
    if metadata.get("kind") != kind:
        noted = quoted(metadata.get("kind", "model of no kind"))
        raise InputError(f"{shown}: holds a {noted}; expected a {kind}")
    try:
        config = parse_config(metadata.get("config", "null"), config_type)
    except InputError as error:
        raise InputError(f"{shown}: unusable {kind} configuration: {error}") from error
    return Checkpoint(path, config, metadata, tensors)


def read_header(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, TensorHeader]]:
    """Metadata and tensors of a .safetensors file, in the order of the file.

    Raises InputError where it is not valid: lengths, offsets that overlap or leave holes, tensors
    beyond the end, and names that are there twice.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="numpy"):  # checks the header and all offsets
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length), object_pairs_hook=_unique)
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{quoted(path)}: not a readable .safetensors file: {quoted(str(error))}"
        ) from error
    metadata = header.pop("__metadata__", None) or {}
    tensors = {
        name: TensorHeader(
            about["dtype"], tuple(about["shape"]), 8 + length + about["data_offsets"][0]
        )
        for name, about in header.items()
    }
    return metadata, tensors


def read_tensors(path: Path, tensors: Mapping[str, TensorHeader]) -> dict[str, np.ndarray]:
    """Tensors that ``read_header`` found; floating ones as float32.

    Raises InputError for a type that is not of NumPy's, such as an 8 bit float.
    """
    arrays = {}
    with path.open("rb") as file:
        for name, tensor in tensors.items():
            if tensor.dtype not in _NUMPY_DTYPES:
                raise InputError(
                    f"{quoted(path)}: tensor {quoted(name)} has dtype {tensor.dtype}; "
                    f"expected one of {', '.join(_NUMPY_DTYPES)}"
                )
            # read, not mapped: a mapped file stays in memory beside the arrays
            file.seek(tensor.begin)
            count = math.prod(tensor.shape)
            array = np.fromfile(file, _NUMPY_DTYPES[tensor.dtype], count)
            if tensor.dtype == "BF16":
                array = (array.astype(np.uint32) << 16).view(np.float32)
            elif array.dtype.kind == "f":
                array = array.astype(np.float32, copy=False)
            arrays[name] = array.reshape(tensor.shape)
    return arrays


def parse_config(text: str, config_type: type[Config]) -> Config:
    """A configuration as files carry it, in JSON, checked by its own rules.

    Raises InputError that says what is wrong; the text may be anything.
    """
    try:
        fields = json.loads(text, object_pairs_hook=_unique)
        if not isinstance(fields, dict):
            raise InputError(f"it is a {type(fields).__name__}; expected an object of fields")
        return config_type(**{name: _tuples(value) for name, value in fields.items()})
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        raise InputError(quoted(str(error))) from error


def noted_checksum(metadata: Mapping[str, str], field: str, source: str) -> str | None:
    """A checksum of weights in a native file's metadata, or None where there is none.

    source: how the InputError names the file where ``field`` is something else.
    """
    checksum = metadata.get(field)
    if checksum is not None and not re.fullmatch("sha256:[0-9a-f]{64}", checksum):
        raise InputError(
            f"{source}: {field} in its metadata is no checksum; expected sha256: and 64 digits"
        )
    return checksum


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object; raises ValueError where a name is there twice, since readers differ then."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a name is there twice")
    return fields


def _tuples(value: object) -> object:
    """JSON lists as the tuples that frozen configurations hold."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def check_tensors(
    source: str, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, np.ndarray]
) -> None:
    """Raises InputError unless ``found`` has exactly the names and shapes of ``expected``.

    source: how the message names the file, quoted already.
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
    """SHA-256 of weights, ``sha256:`` and 64 hexadecimal digits, whatever file they came from.

    Over names, shapes and elements, as the float32 numbers that a model computes with, in the
    order of names. tensors: published name, shape, and the elements in pieces, each.
    """
    digest = hashlib.sha256()
    for name, shape, pieces in sorted(tensors, key=lambda tensor: tensor[0]):
        digest.update(f"{name} F32 {tuple(shape)}\n".encode())
        for piece in pieces:
            digest.update(np.ascontiguousarray(piece, np.float32).reshape(-1).view(np.uint8))
    return f"sha256:{digest.hexdigest()}"
