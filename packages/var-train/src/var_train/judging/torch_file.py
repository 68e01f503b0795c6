"""Weights of a file that PyTorch before 1.6 wrote, read without PyTorch."""

import pickle
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from var_tokenizer.common import InputError, open_regular, quoted

_MAGIC = 0x1950A86A20F9469CFC6C
_TYPES = {"FloatStorage": np.dtype("<f4"), "LongStorage": np.dtype("<i8")}


@dataclass(frozen=True)
class _Tensor:
    key: str
    dtype: np.dtype
    begin: int = 0
    shape: tuple[int, ...] = ()
    steps: tuple[int, ...] = ()


class _Reader(pickle.Unpickler):
    """Takes tensors and plain containers; whatever else a pickle names is refused, not imported."""

    def find_class(self, module: str, name: str) -> object:
        if module == "torch" and name in _TYPES:
            return _TYPES[name]
        allowed = {"_rebuild_tensor_v2": _rebuilt, "OrderedDict": OrderedDict}
        if module not in ("torch._utils", "collections") or name not in allowed:
            raise pickle.UnpicklingError(f"{module}.{name} is no tensor")
        return allowed[name]

    def persistent_load(self, saved: tuple) -> _Tensor:
        _, dtype, key, *_ = saved
        return _Tensor(key, dtype)


def _rebuilt(
    storage: _Tensor, begin: int, shape: tuple[int, ...], steps: tuple[int, ...], *_: object
) -> _Tensor:
    return replace(storage, begin=begin, shape=shape, steps=steps)


def read_torch_file(path: Path) -> dict[str, np.ndarray]:
    """The dense float32 and int64 tensors of a state dict.

    Nothing in the file is imported or called. Raises InputError for any other file.
    """
    try:
        with open_regular(path) as file:
            if _Reader(file).load() != _MAGIC:
                raise InputError(f"{quoted(path)}: no file of torch.save before PyTorch 1.6")
            for _ in range(2):  # the protocol, and the sizes of C's types
                _Reader(file).load()
            state, keys = _Reader(file).load(), _Reader(file).load()
            wanted = {tensor.key: tensor.dtype for tensor in state.values()}
            stored = {key: _storage(file, wanted[key]) for key in keys}
            return {name: _array(stored[tensor.key], tensor) for name, tensor in state.items()}
    except InputError:
        raise
    except Exception as error:  # a damaged file may raise anything
        raise InputError(f"{quoted(path)}: not readable: {quoted(str(error))}") from error


def _storage(file: BinaryIO, dtype: np.dtype) -> np.ndarray:
    count = int.from_bytes(file.read(8), "little")
    return np.frombuffer(file.read(count * dtype.itemsize), dtype, count)


def _array(stored: np.ndarray, tensor: _Tensor) -> np.ndarray:
    # NumPy's own constructor checks that no element is outside of what is stored
    strides = [step * stored.itemsize for step in tensor.steps]
    begin = tensor.begin * stored.itemsize
    view: np.ndarray = np.ndarray(tensor.shape, stored.dtype, stored.data, begin, strides)
    return np.ascontiguousarray(view).reshape(tensor.shape)
