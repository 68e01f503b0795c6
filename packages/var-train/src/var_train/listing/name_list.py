"""Names of many files in one array: 14 million Python strings take 0.8 GB beside their text."""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np

_CHUNK = 4096  # names that are copied or decoded at once
_PART = 2**20  # bytes that are compared at once


class NameList(Sequence[str]):
    """N names, none with a zero character; bytes that are not UTF-8 are surrogates, as in ``os``.

    Each takes its length in UTF-8 and nine bytes. Equal to another list of the same names.
    """

    def __init__(self, text: bytes | np.ndarray) -> None:
        """text: the names in UTF-8, a zero after each; uint8 if an array."""
        self._text = np.frombuffer(text, np.uint8) if isinstance(text, bytes) else text
        self._ends_n = _zeros(self._text)

    @classmethod
    def of(cls, names: Iterable[str]) -> "NameList":
        text = bytearray()
        for name in names:
            text += os.fsencode(name) + b"\0"
        return cls(bytes(text))

    @classmethod
    def joined(cls, parts: Iterable[tuple[str, "NameList"]]) -> "NameList":
        """All names of several lists, those of each behind a prefix."""
        every = [(os.fsencode(prefix), names) for prefix, names in parts]
        size = sum(len(start) * len(names) + names._text.size for start, names in every)
        text, end = np.empty(size, np.uint8), 0
        for start, names in every:
            for part in names.texts(start):
                text[end : end + len(part)] = np.frombuffer(part, np.uint8)
                end += len(part)
        return cls(text)

    def texts(self, prefix: bytes) -> Iterator[bytes]:
        """Yields the names behind a prefix, in UTF-8 with a zero after each, some at a time."""
        for first in range(0, len(self), _CHUNK):
            yield prefix + self._chunk(first).replace(b"\0", b"\0" + prefix) + b"\0"

    @property
    def text(self) -> np.ndarray:
        """The names in UTF-8, a zero between each two, as uint8."""
        return self._text[:-1]

    @property
    def terminated(self) -> np.ndarray:
        """The names in UTF-8, a zero after each, as uint8."""
        return self._text

    def __len__(self) -> int:
        return len(self._ends_n)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        begin = self._ends_n[place - 1] + 1 if place else 0
        return os.fsdecode(self._text[begin : self._ends_n[place]].tobytes())

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _CHUNK):
            yield from self._chunk(first).decode("utf-8", "surrogateescape").split("\0")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NameList) or self._text.size != other._text.size:
            return False
        begins = range(0, 0 if self is other else self._text.size, _PART)
        return all(
            np.array_equal(self._text[i : i + _PART], other._text[i : i + _PART]) for i in begins
        )

    def missing_in(self, other: "NameList") -> np.ndarray:
        """The places of the names that ``other`` does not have, in order."""
        # hashes of 64 bits: of 14 million names, two others share one in 1 of 100,000 lists
        own, others = (np.fromiter(map(hash, n), np.int64, len(n)) for n in (self, other))
        return np.flatnonzero(~np.isin(own, others))

    def take(self, indices: np.ndarray) -> "NameList":
        """The names at ``indices``, in their order."""
        chunks = [indices[i : i + _CHUNK] for i in range(0, len(indices), _CHUNK)]
        sizes = [int(np.diff(self._bounds(chunk), axis=0).sum()) for chunk in chunks]
        text, end = np.empty(sum(sizes), np.uint8), 0
        for chunk, size in zip(chunks, sizes, strict=True):
            begins_n, ends_n = self._bounds(chunk)
            lengths_n = ends_n - begins_n
            shifts_n = begins_n - np.cumsum(lengths_n) + lengths_n
            text[end : end + size] = self._text[np.arange(size) + np.repeat(shifts_n, lengths_n)]
            end += size
        return NameList(text)

    def _bounds(self, indices: np.ndarray) -> np.ndarray:
        """(2, n): where the texts of names begin, and where they end behind their zeros."""
        begins_n = np.where(indices > 0, self._ends_n[indices - 1] + 1, 0)
        return np.stack([begins_n, self._ends_n[indices] + 1])

    def _chunk(self, first: int) -> bytes:
        begin = self._ends_n[first - 1] + 1 if first else 0
        end = self._ends_n[min(first + _CHUNK, len(self)) - 1]
        return self._text[begin:end].tobytes()


def _zeros(text: np.ndarray) -> np.ndarray:
    """(n,) int64: where the zeros are. Found in parts: a mask of all takes as much as the text."""
    places_n = np.empty(text.size - np.count_nonzero(text), np.int64)
    end = 0
    for begin in range(0, text.size, _PART):
        found_n = np.flatnonzero(text[begin : begin + _PART] == 0)
        places_n[end : end + found_n.size] = found_n + begin
        end += found_n.size
    return places_n
