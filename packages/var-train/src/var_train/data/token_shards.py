"""Shards of a token cache, read row by row in place, with few files open at a time.

A shard is checked when the first of its rows is read, so that opening a cache takes no longer than
reading its headers, and no step sees a damaged token.
"""

import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from var_tokenizer.common import TensorHeader, quoted, read_header

from var_train.listing.open_files import OpenFile
from var_train.listing.source_errors import TOO_MANY_FILES, SourceError

DTYPES: dict[str, np.dtype[Any]] = {"U16": np.dtype(np.uint16), "I32": np.dtype(np.int32)}
"""Types of tokens and labels, by their names in a file."""

MOST_OPEN = 32
"""Files that a split keeps open; a process has two splits."""

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Shard:
    """What the header of a shard says."""

    path: Path
    checksum: str
    tensors: Mapping[str, TensorHeader]

    @classmethod
    def read(cls, path: Path) -> "Shard":
        """Raises InputError for a file that is missing or has another header than a shard."""
        metadata, tensors = read_header(path)
        return cls(path, metadata.get("sha256", ""), tensors)

    def labels(self) -> np.ndarray:
        """(n,) int32, one for each image."""
        about = self.tensors["labels"]
        dtype, count = DTYPES[about.dtype], about.shape[0]
        return np.fromfile(self.path, dtype, count, offset=about.begin).astype(np.int32)


class TokenShards:
    """Rows of the shards of one split. Threads may share it."""

    def __init__(
        self, shards: Sequence[Shard], names: Sequence[str], is_whole: Callable[[int, Arrays], bool]
    ) -> None:
        """names: of the arrays to check. is_whole: whether a shard's arrays are as they should be.

        A shard is a number, its place in ``shards``.
        """
        self._shards, self._names, self._is_whole = shards, names, is_whole
        self._open: OrderedDict[int, OpenFile] = OrderedDict()  # the last one used at the end
        self._checked: dict[int, tuple[int, ...]] = {}
        self._lock = Lock()

    def row(self, name: str, shard: int, row: int) -> np.ndarray:
        """A row of the array ``name`` of a shard.

        Raises SourceError, which names the file, for one that is damaged, gone, or another than it
        was, and if the process may not open another file.
        """
        with self._lock:
            file = self._open.get(shard)
            if file is None:
                file = self._opened(shard)
            else:
                self._open.move_to_end(shard)
        about = self._shards[shard].tensors[name]
        return self._read(file, shard, about, about.shape[1:], row)

    def _opened(self, shard: int) -> OpenFile:
        path = self._shards[shard].path
        while len(self._open) >= MOST_OPEN:
            self._open.popitem(last=False)
        try:
            try:
                file = OpenFile(os.open(path, os.O_RDONLY))
            except OSError as error:
                if error.errno not in TOO_MANY_FILES:
                    raise
                self._open.clear()
                file = OpenFile(os.open(path, os.O_RDONLY))
        except OSError as error:
            more = "; expected more of them to be allowed (ulimit -n)"
            raise SourceError(
                f"{quoted(path)}: cannot read this shard: {error.strerror}"
                f"{more if error.errno in TOO_MANY_FILES else ''}"
            ) from error
        about = os.fstat(file.number)
        version = (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns)
        if self._checked.get(shard) != version:
            self._check(file, shard)
            self._checked[shard] = version
        self._open[shard] = file
        return file

    def _check(self, file: OpenFile, shard: int) -> None:
        tensors = self._shards[shard].tensors
        arrays = {n: self._read(file, shard, tensors[n], tensors[n].shape) for n in self._names}
        if not self._is_whole(shard, arrays):
            raise SourceError(
                f"{quoted(self._shards[shard].path)}: damaged, or another than when the command "
                "began; expected a whole shard (the same var_train.tokenize command writes a "
                "damaged one again)"
            )

    def _read(
        self,
        file: OpenFile,
        shard: int,
        about: TensorHeader,
        shape: tuple[int, ...],
        row: int = 0,
    ) -> np.ndarray:
        dtype = DTYPES[about.dtype]
        size = int(np.prod(shape)) * dtype.itemsize
        data = file.read(size, about.begin + row * size)
        if len(data) < size:
            raise SourceError(
                f"{quoted(self._shards[shard].path)}: became shorter; expected the shard that was "
                "there when the command began"
            )
        return np.frombuffer(data, dtype).reshape(shape)
