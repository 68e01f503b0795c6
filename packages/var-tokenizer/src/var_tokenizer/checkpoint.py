"""The native file format: safetensors with the model's kind and configuration as metadata.

Tensors carry the published PyTorch names and layouts, so any safetensors reader can use a file.
"""

import dataclasses
import hashlib
import json
import math
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from var_tokenizer.errors import InputError, quoted

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
    path = Path(path)
    metadata = read_metadata(path, kind)
    try:
        config = config_type(
            **{field: _tuples(v) for field, v in json.loads(metadata["config"]).items()}
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: unusable {kind} configuration: {error}") from error
    return config, _read_tensors(path)


def read_metadata(path: str | os.PathLike[str], kind: str) -> dict[str, str]:
    """What a native file of ``kind`` carries besides its tensors; unchecked but for the kind.

    Raises InputError for a file that is missing, not safetensors, or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a {kind} (.safetensors)")
    try:
        with safe_open(path, framework="numpy") as file:  # validates the header and all offsets
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable .safetensors file: {error}") from error
    if metadata.get("format") != "var-mindspore":
        raise InputError(
            f"{path}: no var-mindspore configuration in its metadata; "
            "expected a native file (var-convert makes one)"
        )
    if metadata.get("kind") != kind:
        raise InputError(f"{path}: holds a {metadata.get('kind')}; expected a {kind}")
    return metadata


def _tuples(value: object) -> object:
    """JSON lists as the tuples that frozen configurations hold."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _read_tensors(path: Path) -> dict[str, np.ndarray]:
    tensors = {}
    with path.open("rb") as file:
        header_length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if entry["dtype"] not in _NUMPY_DTYPES:
                raise InputError(
                    f"{path}: tensor {name} has dtype {entry['dtype']}; "
                    f"expected one of {', '.join(_NUMPY_DTYPES)}"
                )
            # read, not mapped: a mapped file stays in memory beside the arrays
            file.seek(8 + header_length + entry["data_offsets"][0])
            count = math.prod(entry["shape"])
            array = np.fromfile(file, _NUMPY_DTYPES[entry["dtype"]], count)
            if entry["dtype"] == "BF16":
                array = (array.astype(np.uint32) << 16).view(np.float32)
            elif array.dtype.kind == "f":
                array = array.astype(np.float32, copy=False)
            tensors[name] = array.reshape(entry["shape"])
    return tensors


def check_tensors(
    source: str, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, np.ndarray]
) -> None:
    """Raises InputError unless ``found`` has exactly the names and shapes of ``expected``."""
    missing = sorted(expected.keys() - found.keys())
    extra = sorted(found.keys() - expected.keys())
    wrong = [
        f"{name} {tuple(found[name].shape)}, expected {shape}"
        for name, shape in expected.items()
        if name in found and tuple(found[name].shape) != tuple(shape)
    ]
    problems = [
        f"{len(names)} {what}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        for what, names in (
            ("missing tensor(s)", missing),
            ("unexpected tensor(s)", extra),
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
