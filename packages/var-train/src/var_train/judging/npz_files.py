"""The one reader of ``.npz`` files from anyone: nothing is unpickled, no size is believed.

Only arrays of plain numbers are read. A header's shape must fit the bytes that are there before
anything is allocated, and large arrays are read some rows at a time.
"""

import math
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
from var_tokenizer.common import InputError, images_that_fit, open_regular, quoted

_LONGEST_HEADER = 10_000  # bytes; NumPy's take about 100
_MOST_INFLATION = 1032  # what deflate can make of a byte
_PART = 2**20  # bytes that are read at once


@dataclass(frozen=True)
class NpzArray:
    """An array of a file, from its header: name without ``.npy``, type, shape."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    """Bytes of the header."""


class NpzFile:
    """The arrays of an ``.npz`` file.

    Raises InputError, which names the file and what is wrong, for what is no such file or damaged,
    an array of objects, one whose shape does not fit its bytes, and one in Fortran's order.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.arrays: dict[str, NpzArray] = {}
        with self._archive() as archive:
            for about in archive.infolist():
                name = about.filename.removesuffix(".npy")
                if name == about.filename:
                    continue
                if name in self.arrays:
                    raise self._error(f"{quoted(name)} is there twice")
                self.arrays[name] = self._header(archive, about, name)

    def parts(self, name: str) -> Iterator[int]:
        """Reads an array to its end, which checks its checksum; yields bytes of each part."""
        with self._archive() as archive, archive.open(f"{name}.npy") as file:
            while part := file.read(_PART):
                yield len(part)

    def first(self, name: str) -> np.ndarray:
        """Some of the first values, one at least if there are any."""
        array = self.arrays[name]
        count = min(math.prod(array.shape), _PART // array.dtype.itemsize)
        with self._archive() as archive, archive.open(f"{name}.npy") as file:
            file.read(array.begin)
            data = file.read(count * array.dtype.itemsize)
        return np.frombuffer(data, array.dtype, len(data) // array.dtype.itemsize)

    def rows(self, name: str, count: int) -> Iterator[np.ndarray]:
        """Yields ``count`` rows at a time, and at the end what is left."""
        array = self.arrays[name]
        row_bytes = math.prod(array.shape[1:]) * array.dtype.itemsize
        self._check_memory(name, min(count, array.shape[0]) * row_bytes)
        with self._archive() as archive, archive.open(f"{name}.npy") as file:
            file.read(array.begin)
            for begin in range(0, array.shape[0], count):
                rows = min(count, array.shape[0] - begin)
                data = file.read(rows * row_bytes)
                if len(data) != rows * row_bytes:
                    raise self._error(f"{quoted(name)} ends early")
                yield np.frombuffer(data, array.dtype).reshape(rows, *array.shape[1:])

    def read(self, name: str) -> np.ndarray:
        """A whole array. Check its shape first."""
        array = self.arrays[name]
        size = math.prod(array.shape) * array.dtype.itemsize
        self._check_memory(name, size)
        with self._archive() as archive, archive.open(f"{name}.npy") as file:
            file.read(array.begin)
            data = file.read(size)
            if len(data) != size or file.read(1):
                raise self._error(f"{quoted(name)} ends early")
        return np.frombuffer(data, array.dtype).reshape(array.shape)

    def _check_memory(self, name: str, size: int) -> None:
        if (most := images_that_fit(1, size)) < size:
            raise self._error(f"{quoted(name)} takes {size} bytes, and memory holds {most}")

    def _header(self, archive: zipfile.ZipFile, about: zipfile.ZipInfo, name: str) -> NpzArray:
        shown = quoted(name)
        if about.compress_type == zipfile.ZIP_STORED:
            most = about.compress_size
        else:
            most = about.compress_size * _MOST_INFLATION
        if about.compress_size > self.path.stat().st_size or about.file_size > most:
            raise self._error(
                f"{shown} claims {about.file_size} bytes and has {about.compress_size} in the file"
            )
        with archive.open(about) as file:
            magic = file.read(8)
            version = tuple(magic[6:])
            if magic[:6] != b"\x93NUMPY" or version not in ((1, 0), (2, 0)):
                raise self._error(f"{shown} is no array of NumPy's format 1.0 or 2.0")
            width = 2 if version == (1, 0) else 4
            length = int.from_bytes(size := file.read(width), "little")
            if length > _LONGEST_HEADER:
                raise self._error(f"{shown} has a header of {length} bytes")
            text = file.read(length)
        read = np.lib.format.read_array_header_1_0 if width == 2 else _read_header_2
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of a header that is refused, or read all the same
                shape, is_fortran, dtype = read(BytesIO(size + text))
        except Exception as error:  # Python's parser reads it, which can raise anything
            raise self._error(f"{shown} has a damaged header") from error
        if dtype.hasobject or dtype.kind not in "biuf":
            raise self._error(f"{shown} has dtype {quoted(str(dtype))}; expected plain numbers")
        if is_fortran and len(shape) > 1:
            raise self._error(f"{shown} is in Fortran's order; expected C's")
        there = about.file_size - 8 - width - length
        if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != there:
            raise self._error(f"{shown} has shape {str(shape)[:80]}, {dtype}, but {there} bytes")
        return NpzArray(name, dtype, shape, 8 + width + length)

    @contextmanager
    def _archive(self) -> Iterator[zipfile.ZipFile]:
        damage = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
        try:
            with open_regular(self.path) as file, zipfile.ZipFile(file) as archive:
                yield archive
        except InputError:
            raise
        except (*damage, OSError, ValueError, KeyError) as error:
            raise self._error(quoted(str(error))) from error

    def _error(self, what: str) -> InputError:
        return InputError(f"{quoted(self.path)}: not a readable .npz file: {what}")


def _read_header_2(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    header: tuple[tuple[int, ...], bool, np.dtype] = np.lib.format.read_array_header_2_0(file)
    return header
