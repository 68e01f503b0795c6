"""Resizing as a matrix product: area averaging down, bicubic up, between fixed sizes."""

from functools import lru_cache

import numpy as np

Size = tuple[int, int]


def _area_1d(source: int, target: int) -> np.ndarray:
    """(target, source): each target cell is the mean of the source cells that it touches."""
    matrix = np.zeros((target, source))
    for t in range(target):
        begin, end = t * source // target, -(-(t + 1) * source // target)
        matrix[t, begin:end] = 1 / (end - begin)
    return matrix


def _bicubic_1d(source: int, target: int) -> np.ndarray:
    """(target, source): cubic convolution with a = -0.75, half-pixel centres, edges repeated."""
    a = -0.75
    matrix = np.zeros((target, source))
    for t in range(target):
        centre = (t + 0.5) * source / target - 0.5
        first = int(np.floor(centre)) - 1
        for s in range(first, first + 4):
            d = abs(centre - s)
            if d <= 1:
                weight = (a + 2) * d**3 - (a + 3) * d**2 + 1
            else:
                weight = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
            matrix[t, min(max(s, 0), source - 1)] += weight
    return matrix


@lru_cache(maxsize=128)
def area_matrix(source: Size, target: Size) -> np.ndarray:
    """(rows * columns of target, rows * columns of source) float32: area averaging.

    Equals ``torch.nn.functional.interpolate(mode="area")`` on maps flattened row by row.
    """
    matrix = np.kron(_area_1d(source[0], target[0]), _area_1d(source[1], target[1]))
    return matrix.astype(np.float32)


@lru_cache(maxsize=128)
def bicubic_matrix(source: Size, target: Size) -> np.ndarray:
    """(rows * columns of target, rows * columns of source) float32: bicubic interpolation.

    Equals ``torch.nn.functional.interpolate(mode="bicubic")`` on maps flattened row by row.
    """
    matrix = np.kron(_bicubic_1d(source[0], target[0]), _bicubic_1d(source[1], target[1]))
    return matrix.astype(np.float32)
