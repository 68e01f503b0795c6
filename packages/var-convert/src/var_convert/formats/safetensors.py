"""Reading and writing .safetensors, a piece of a tensor at a time."""

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from var_tokenizer.common import (
    InputError,
    TensorHeader,
    quoted,
    read_model_header,
    read_scales,
    split_scales,
    widened_from_int8,
)

from var_convert.formats.dtypes import NUMPY
from var_convert.formats.weights import Entry, Weights

log = logging.getLogger(__name__)


def read_safetensors(path: Path) -> list[Weights]:
    """The one model of the file, which may be a checkpoint of a training.

    Raises InputError if it is not valid safetensors, or a damaged checkpoint.
    """
    metadata, header, training = read_model_header(path)
    if training is not None:
        training.check()
        log.info("%s", training)
    header, of_int8 = split_scales(path, metadata, header)
    tensors = {name: _entry(path, name, about) for name, about in header.items()}
    for name, scales in read_scales(path, of_int8).items():
        tensors[name] = _widened(tensors[name], scales)
    return [Weights(quoted(path), tensors, metadata)]


def _widened(entry: Entry, scales: np.ndarray) -> Entry:
    """A matrix of int8 as float32."""

    def read(start: int, stop: int) -> np.ndarray:
        rows = np.arange(start, stop) // entry.shape[1]
        return widened_from_int8(entry.read(start, stop), scales[rows])

    return Entry("F32", entry.shape, read, entry.dtype)


def _entry(path: Path, name: str, about: TensorHeader) -> Entry:
    if about.dtype not in NUMPY:
        raise InputError(
            f"{quoted(path)}: tensor {quoted(name)} has dtype {about.dtype}; "
            f"expected one of {', '.join(NUMPY)}"
        )
    dtype = NUMPY[about.dtype]

    def read(start: int, stop: int) -> np.ndarray:
        if start == stop:
            return np.empty(0, dtype)
        # "c": PyTorch wants writable memory; nothing is written to the file. Each piece has its
        # own mapping, so that its pages are released with it.
        offset = about.begin + start * dtype.itemsize
        piece = np.memmap(path, dtype, "c", offset=offset, shape=(stop - start,))
        return np.require(piece, requirements="A")

    def read_arranged(start: int, stop: int) -> np.ndarray:
        return about.arranged(read(0, math.prod(about.shape))).reshape(-1)[start:stop]

    return Entry(about.dtype, about.shape, read_arranged if about.channels_last else read)


def write_safetensors(
    path: Path, tensors: Mapping[str, Entry], metadata: Mapping[str, str]
) -> None:
    """Writes the tensors, holding no more than a piece of one in memory."""
    # Widest elements first keeps every tensor aligned to its element size.
    order = sorted(tensors, key=lambda name: (-NUMPY[tensors[name].dtype].itemsize, name))
    header: dict = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        begin, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": tensors[name].dtype,
            "shape": list(tensors[name].shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name in order:
            for piece in tensors[name].pieces():
                file.write(np.ascontiguousarray(piece).data.cast("B"))
