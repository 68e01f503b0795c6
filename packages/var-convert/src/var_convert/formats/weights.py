"""The named tensors of one model in a file: listed at once, read piece by piece."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from var_convert.formats.dtypes import FLOATING, NUMPY, cast

PIECE = 1 << 20  # elements read at a time: large enough for full disk speed, small in memory


@dataclass(frozen=True)
class Entry:
    """One tensor.

    dtype: safetensors name ("F32", "BF16", "I64", ...). read: elements [start, stop) in row-major
    order as a 1-D array of ``NUMPY[dtype]``. held: the type in the file, where it is int8.
    """

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[int, int], np.ndarray] = field(repr=False, compare=False)
    held: str | None = field(default=None, compare=False)

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * NUMPY[self.dtype].itemsize

    @property
    def is_floating(self) -> bool:
        return self.dtype in FLOATING

    def pieces(self) -> Iterator[np.ndarray]:
        """The elements in order, a bounded number at a time."""
        for start in range(0, self.size, PIECE):
            yield self.read(start, min(start + PIECE, self.size))

    def array(self) -> np.ndarray:
        """The whole tensor in its shape; bfloat16 as uint16 bits."""
        return self.read(0, self.size).reshape(self.shape)

    def as_dtype(self, dtype: str | None) -> "Entry":
        """The same tensor with its elements as ``dtype``; integers and None stay as they are."""
        if dtype in (None, self.dtype) or not self.is_floating:
            return self
        return Entry(
            dtype, self.shape, lambda start, stop: cast(self.read(start, stop), self.dtype, dtype)
        )


def entry_of(array: np.ndarray, dtype: str) -> Entry:
    """An entry whose elements are in memory."""
    flat = array.reshape(-1)
    return Entry(dtype, tuple(array.shape), lambda start, stop: flat[start:stop])


class LazyEntries(Mapping[str, Entry]):
    """Entries that are made, and refused, only when they are asked for."""

    def __init__(self, names: Iterable[str], make: Callable[[str], Entry]) -> None:
        self._names, self._make = dict.fromkeys(names), make

    def __getitem__(self, name: str) -> Entry:
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


@dataclass(frozen=True)
class Weights:
    """The tensors of one state dict in one file.

    source: how messages name it. metadata: what this project's writers add (kind, config, ...).
    key: where in the file the state dict is, such as ``trainer.var_wo_ddp``; empty at its top.
    config: what a config.json beside the weights says of the model, unchecked.
    """

    source: str
    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str]
    key: str = ""
    config: Mapping[str, Any] = field(default_factory=dict)
