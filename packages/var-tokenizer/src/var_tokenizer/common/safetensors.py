"""The one reader of .safetensors headers, and the one writer. Files may come from anyone."""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from var_tokenizer.common.errors import InputError, quoted

_NUMPY_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,  # NumPy has no bfloat16: read as bits, widened below
    "I64": np.int64,
    "I32": np.int32,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}
_WRITTEN = {  # in the order of a file: the widest first, so that all are aligned
    "u8": "U64",
    "i8": "I64",
    "f8": "F64",
    "f4": "F32",
    "u4": "U32",
    "i4": "I32",
    "f2": "F16",
    "u2": "U16",
    "i2": "I16",
    "i1": "I8",
    "u1": "U8",
    "b1": "BOOL",
}
_READERS = 4  # threads


@dataclasses.dataclass(frozen=True)
class TensorHeader:
    """A tensor as the header describes it. begin: the position of its first byte in the file.

    channels_last: of ``shape`` (out, in, rows, columns) the file holds (out, rows, columns, in), as
    checkpoints of a training do.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    channels_last: bool = False

    def arranged(self, elements: np.ndarray) -> np.ndarray:
        """The elements in the order of the file, as an array of ``shape``."""
        if not self.channels_last:
            return elements.reshape(self.shape)
        o, i, y, x = self.shape
        return elements.reshape(o, y, x, i).transpose(0, 3, 1, 2)


def read_header(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, TensorHeader]]:
    """Metadata and tensors of a .safetensors file, in the order of the file.

    Raises InputError for a file that is not valid: wrong lengths, offsets that overlap or leave
    holes, tensors beyond the end, names that occur twice.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="numpy"):  # checks the header and all offsets
            pass
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length), object_pairs_hook=unique_fields)
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
    """The tensors of a header that ``read_header`` gave; floating ones as float32.

    Raises InputError for a type that NumPy does not have, such as an 8-bit float, and for a file
    that became shorter.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _NUMPY_DTYPES:
            raise InputError(
                f"{quoted(path)}: tensor {quoted(name)} has dtype {tensor.dtype}; "
                f"expected one of {', '.join(_NUMPY_DTYPES)}"
            )
    # several threads, because most of the time the system hands out memory for the arrays
    with path.open("rb") as file, ThreadPoolExecutor(_READERS) as pool:
        read = partial(_read_tensor, file)
        return dict(zip(tensors, pool.map(read, tensors.values()), strict=True))


def _read_tensor(file: BinaryIO, tensor: TensorHeader) -> np.ndarray:
    # read, not mapped: who writes to a mapped file changes the weights of a running model
    array = np.empty(math.prod(tensor.shape), _NUMPY_DTYPES[tensor.dtype])
    read_bytes(file, tensor.begin, array.view(np.uint8).data)
    if tensor.dtype == "BF16":
        array = (array.astype(np.uint32) << 16).view(np.float32)
    elif array.dtype.kind == "f":
        with np.errstate(over="ignore", invalid="ignore"):  # who cannot use infinities refuses them
            array = array.astype(np.float32, copy=False)
    return tensor.arranged(array)


def read_bytes(file: BinaryIO, begin: int, buffer: memoryview) -> None:
    """Fills ``buffer`` from position ``begin`` on; raises InputError if the file ends before."""
    while len(buffer):  # the system reads at most 2 GiB at once
        count = os.preadv(file.fileno(), [buffer], begin)
        if not count:
            raise InputError(f"{quoted(file.name)}: became shorter while it was read")
        buffer, begin = buffer[count:], begin + count


def write_tensors(
    path: Path,
    arrays: Mapping[str, np.ndarray],
    metadata: Mapping[str, str],
    checksum: Future[str] | None = None,
) -> None:
    """Writes a .safetensors file; equal content gives equal bytes. Raises OSError if it cannot.

    checksum: 64 digits for the entry ``sha256`` of the metadata, computed while the tensors are
    written. The library's own writer orders the metadata by chance, and puts a file of its own
    beside ``path``, which stays if the process is killed.
    """
    kinds = {name: array.dtype.str[1:] for name, array in arrays.items()}
    ordered = sorted(arrays, key=lambda name: (list(_WRITTEN).index(kinds[name]), name))
    tensors = {}
    end = 0
    for name in ordered:
        begin, end = end, end + arrays[name].nbytes
        tensors[name] = {
            "dtype": _WRITTEN[kinds[name]],
            "shape": arrays[name].shape or (1,),
            "data_offsets": (begin, end),
        }
    with path.open("wb") as file:
        known = metadata if checksum is None else {**metadata, "sha256": "0" * 64}
        file.write(_header(known, tensors))
        for name in ordered:
            array = np.ascontiguousarray(arrays[name], arrays[name].dtype.newbyteorder("<"))
            file.write(array.reshape(-1).view(np.uint8).data)
        if checksum is not None:
            file.seek(0)
            file.write(_header({**metadata, "sha256": checksum.result()}, tensors))


def _header(metadata: Mapping[str, str], tensors: Mapping[str, object]) -> bytes:
    """The beginning of a file, up to the first tensor."""
    header = {"__metadata__": dict(sorted(metadata.items())), **tensors}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def arrays_checksum(arrays: Mapping[str, np.ndarray], head: str = "") -> str:
    """SHA-256 of ``head`` and of names, types, shapes and elements: 64 hexadecimal digits."""
    # one by one: they may be in a file
    return sorted_checksum(((name, arrays[name]) for name in sorted(arrays)), head)


def sorted_checksum(arrays: Iterable[tuple[str, np.ndarray]], head: str) -> str:
    """``arrays_checksum`` of arrays that come one by one, sorted by name."""
    digest = hashlib.sha256(head.encode())
    for name, array in arrays:
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def unique_fields(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object. Raises ValueError for a name that occurs twice: readers would differ."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a name is there twice")
    return fields
