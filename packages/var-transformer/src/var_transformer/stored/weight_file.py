"""Weights in a file, read again each time that they are needed, the next ones ahead."""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from var_tokenizer.common import InputError, TensorHeader, quoted, read_bytes

_LINE = 64  # bytes: where each weight begins in memory
_KINDS: dict[str, tuple[int, type]] = {  # as of cpp/layers.h; NumPy has no bfloat16
    "F32": (0, np.float32),
    "F16": (1, np.float16),
    "BF16": (2, np.uint16),
    "I8": (3, np.int8),
}
_NO_SCALES = np.empty(0, np.float32)


class ChangedFileError(InputError):
    """The file of a model in use is not what it was."""


@dataclass(frozen=True)
class StoredWeight:
    """A weight (outputs, inputs) as the file holds it. kind, scales: as the kernels take them."""

    elements: np.ndarray
    kind: int
    scales: np.ndarray


class WeightFile:
    """The weights of ``groups``, which are needed together, of a file that stays open.

    Reading a group takes memory for two of the largest. Raises InputError for a type that the
    kernels do not take.
    """

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, TensorHeader],
        groups: Sequence[Sequence[str]],
        scales: Mapping[str, np.ndarray],
    ) -> None:
        """scales: of the weights that are int8."""
        for name in (name for group in groups for name in group):
            if tensors[name].dtype not in _KINDS:
                raise InputError(
                    f"{quoted(path)}: tensor {quoted(name)} has dtype {tensors[name].dtype}; "
                    f"expected one of {', '.join(_KINDS)}, as var-convert --dtype writes"
                )
        self._path, self._tensors, self._scales = path, tensors, scales
        self._file = path.open("rb")
        self._version = self._found_version()
        most = max(sum(map(self._room, group)) for group in groups)
        self._buffers = [np.empty(most, np.uint8) for _ in range(2)]
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="weights")

    def groups(self, groups: Sequence[Sequence[str]]) -> Iterator[list[StoredWeight]]:
        """The weights of one group after another, each until the next is asked for.

        Raises ChangedFileError if the file was written to since it was opened.
        """
        ahead = self._pool.submit(self._read, groups[0], 0)
        for i in range(len(groups)):
            weights = ahead.result()
            if i + 1 < len(groups):
                ahead = self._pool.submit(self._read, groups[i + 1], i + 1)
            yield weights

    def _read(self, names: Sequence[str], i: int) -> list[StoredWeight]:
        weights, at = [], 0
        for name in names:
            tensor = self._tensors[name]
            kind, dtype = _KINDS[tensor.dtype]
            count = int(np.prod(tensor.shape)) * np.dtype(dtype).itemsize
            part = self._buffers[i % 2][at : at + count]
            try:
                read_bytes(self._file, tensor.begin, part.data)
            except InputError as error:
                raise ChangedFileError(str(error)) from error
            scales = self._scales.get(name, _NO_SCALES)
            weights.append(StoredWeight(part.view(dtype).reshape(tensor.shape), kind, scales))
            at += self._room(name)
        if self._found_version() != self._version:
            raise ChangedFileError(f"{quoted(self._path)}: was written to while it was in use")
        return weights

    def _room(self, name: str) -> int:
        """The bytes that a weight takes in a buffer."""
        tensor = self._tensors[name]
        count = int(np.prod(tensor.shape)) * np.dtype(_KINDS[tensor.dtype][1]).itemsize
        return -(-count // _LINE) * _LINE

    def _found_version(self) -> tuple[int, int]:
        found = os.fstat(self._file.fileno())
        return found.st_size, found.st_mtime_ns
