"""Reads images of shards in place: one read at an offset each, at most 64 files open."""

import os
from dataclasses import dataclass, replace
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
from var_tokenizer.common import MAX_PIXELS, InputError, open_regular, quoted

from var_train.listing.open_files import OpenFile
from var_train.listing.source_errors import SourceError, refuse_lost

# a thread may read from one more that has just been closed to others: 64 with 32 threads
_MOST_OPEN = 32

State = tuple[int, int, int]
"""Size, time of the last change in nanoseconds, and inode of a shard."""


class NamedBytes(BytesIO):
    """The content of a file in memory, with a name for messages."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name


class ShardReader:
    """The open shards of a list of images. Threads may share it."""

    def __init__(self, paths: list[Path], states: list[State]) -> None:
        """states: what ``state_of`` said of each when it was indexed."""
        self._paths, self._states = paths, states
        self._opened = lru_cache(_MOST_OPEN)(self._open)

    def read(self, shard: int, offset: int, size: int, name: str) -> bytes:
        """``size`` bytes at ``offset``. name: of the image, for messages.

        Raises SourceError if the shard is gone, or no longer as it was indexed.
        """
        try:
            file = self._opened(shard)
        except SourceError as error:
            raise SourceError(f"{error} ({name} was to be read)") from error
        path = quoted(self._paths[shard])
        try:
            status = os.fstat(file.number)
            if state_of(status) != self._states[shard]:
                raise SourceError(
                    f"{path}: was changed after it was indexed; expected the same shard ({name} "
                    "was to be read; the same command indexes it again)"
                )
            if not status.st_nlink:
                raise SourceError(f"{path}: is gone; expected it, for {name}")
            content = file.read(size, offset)
        except OSError as error:
            raise SourceError(f"{path}: cannot read {name}: {error.strerror}") from error
        if len(content) < size:
            raise SourceError(f"{path}: {len(content)} bytes of {name}; expected {size}")
        return content

    def is_as_indexed(self, shard: int) -> bool:
        """Whether a shard still has the size and time that it was indexed with."""
        try:
            return state_of(self._paths[shard].stat()) == self._states[shard]
        except OSError:
            return False

    def _open(self, shard: int) -> OpenFile:
        path = self._paths[shard]
        try:
            with open_regular(path) as file:
                return OpenFile(os.dup(file.fileno()))
        except InputError as error:
            refuse_lost(error)
            raise SourceError(f"{error}; expected the shard that was indexed") from error
        except OSError as error:
            raise SourceError(f"{quoted(path)}: cannot open it: {error.strerror}") from error


@dataclass(frozen=True, eq=False)
class ShardMembers:
    """Where the contents of N images lie."""

    reader: ShardReader
    shard_n: np.ndarray
    """(N,) int32, which shard of the reader's."""
    offsets_n: np.ndarray
    """(N,) int64, where in the shard, in bytes."""

    def read(self, index: int, size: int, name: str) -> NamedBytes:
        """The content of an image of ``size`` bytes. name: for messages.

        Raises InputError for more than an image can have, and SourceError as the reader does.
        """
        if size > 8 * MAX_PIXELS:
            raise InputError(f"{name}: {size} bytes; expected at most {8 * MAX_PIXELS}")
        shard, offset = int(self.shard_n[index]), int(self.offsets_n[index])
        return NamedBytes(self.reader.read(shard, offset, size, name), name)

    def is_as_indexed(self, index: int) -> bool:
        return self.reader.is_as_indexed(int(self.shard_n[index]))

    def take(self, indices: np.ndarray) -> "ShardMembers":
        return replace(self, shard_n=self.shard_n[indices], offsets_n=self.offsets_n[indices])


def state_of(status: os.stat_result) -> State:
    """What changes when a shard does."""
    return status.st_size, status.st_mtime_ns, status.st_ino
