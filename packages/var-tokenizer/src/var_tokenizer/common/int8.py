"""Matrices of 8-bit integers with a scale for each row: a quarter of float32's size.

In a file NAME is I8 (rows, columns), -127 to 127, and NAME.scales F32 (rows,); the matrix is the
product of the two. The metadata has ``int8`` with the version of this rule.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from var_tokenizer.common.errors import InputError, quoted
from var_tokenizer.common.safetensors import TensorHeader, read_tensors

INT8_SCALES = ".scales"
INT8_NOTE = {"int8": "1"}
_LARGEST = 127


def row_scales(matrix: np.ndarray) -> np.ndarray:
    """(rows,) float32: by which the largest number of each row becomes 127."""
    scales = (np.abs(matrix).max(1, initial=0) / _LARGEST).astype(np.float32)
    return np.where(scales > 0, scales, np.float32(1))


def rounded_to_int8(elements: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Elements as int8, each with its scale; off by at most half of it."""
    return np.clip(np.rint(elements / scales), -_LARGEST, _LARGEST).astype(np.int8)


def widened_from_int8(elements: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Elements of int8 as float32, each with its scale."""
    return elements.astype(np.float32) * scales


def split_scales(
    path: Path, metadata: Mapping[str, str], tensors: Mapping[str, TensorHeader]
) -> tuple[dict[str, TensorHeader], dict[str, TensorHeader]]:
    """The tensors of a file without its scales, and matrix -> its scales.

    Raises InputError for another version, a matrix without scales, and scales that do not fit one.
    """
    version = metadata.get("int8")
    if version is None:
        return dict(tensors), {}
    if version != INT8_NOTE["int8"]:
        raise InputError(
            f"{quoted(path)}: int8 is {quoted(version)} in its metadata; "
            f"expected {INT8_NOTE['int8']}"
        )
    scales = {n.removesuffix(INT8_SCALES): t for n, t in tensors.items() if n.endswith(INT8_SCALES)}
    rest = {name: tensor for name, tensor in tensors.items() if not name.endswith(INT8_SCALES)}
    matrices = {name for name, tensor in rest.items() if tensor.dtype == "I8"}
    for name in sorted(matrices ^ scales.keys()):
        missing = "scales" if name in matrices else "a matrix of int8"
        raise InputError(f"{quoted(path)}: {quoted(name)} is without {missing}")
    for name, tensor in scales.items():
        found = tensor.dtype, tensor.shape
        if found != ("F32", rest[name].shape[:1]) or len(rest[name].shape) != 2:
            raise InputError(
                f"{quoted(path)}: scales of {quoted(name)} are {found[0]} {found[1]}; expected F32 "
                f"and the rows of {rest[name].shape}"
            )
    return rest, scales


def read_scales(path: Path, scales: Mapping[str, TensorHeader]) -> dict[str, np.ndarray]:
    """Matrix -> its scales; raises InputError unless they are finite and above 0."""
    arrays = read_tensors(path, scales)
    for name, array in arrays.items():
        if not (np.isfinite(array) & (array > 0)).all():
            raise InputError(
                f"{quoted(path)}: scales of {quoted(name)} hold {array.min():g} to "
                f"{array.max():g}; expected finite numbers above 0"
            )
    return arrays
