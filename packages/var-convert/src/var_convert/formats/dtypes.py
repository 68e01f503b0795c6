"""Element types by their safetensors names, and casts between them, in NumPy alone.

NumPy has no bfloat16: arrays of it are carried as uint16 bits.
"""

from typing import Any

import numpy as np

NUMPY: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(np.uint16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
FLOATING = ("F64", "F32", "F16", "BF16")
LONG_NAMES = {short: dtype.name for short, dtype in NUMPY.items()} | {"BF16": "bfloat16"}
SHORT_NAMES = {long: short for short, long in LONG_NAMES.items()}


def widen(array: np.ndarray, dtype: str) -> np.ndarray:
    """Elements of a floating ``dtype`` in a type that NumPy computes with; values do not change."""
    if dtype == "BF16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32) if dtype == "F16" else array


def cast(array: np.ndarray, source: str, target: str) -> np.ndarray:
    """Elements of floating dtype ``source`` as ``target``, rounded to nearest even.

    Values beyond the range of ``target`` become infinite, as in PyTorch and MindSpore.
    """
    if source == target:
        return array
    wide = widen(array, source)
    if target == "BF16":
        return _to_bfloat16(wide)
    with np.errstate(over="ignore"):
        return wide.astype(NUMPY[target])


def _to_bfloat16(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        bits = array.astype(np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet_nan = (bits >> 16) | 0x40  # rounding up a NaN's bits could make them an infinity
    return np.where(np.isnan(array), quiet_nan, rounded).astype(np.uint16)
