"""Figures of nearest neighbours: precision, recall, density, coverage, and the nearest image.

Precision and recall are those of arXiv:1904.06991 (k = 3), density and coverage those of
arXiv:2002.09797 (k = 5). All distances are Euclidean, between features. They are computed block by
block in float64; distances that differ by no more than rounding count as equal.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

PRECISION_K, DENSITY_K = 3, 5
_ROWS, _COLUMNS = 1024, 4096  # of a block of distances: 32 MiB


@dataclass(frozen=True)
class Neighbours:
    """How a set of N samples lies among M reference images. A figure of too few images is None."""

    precision: float | None
    """Share of the samples within the 3rd neighbour's distance of a reference image; needs 4
    reference images."""
    recall: float | None
    """Share of the reference within the 3rd neighbour's distance of a sample; needs 4 samples."""
    density: float | None
    """Of how many reference images, of 5 expected, a sample is within the 5th neighbour's distance;
    needs 6 reference images."""
    coverage: float | None
    """Share of the reference with a sample within the 5th neighbour's distance; needs as many."""
    nearest_n: np.ndarray
    """(N,) each sample's nearest reference image."""
    distance_n: np.ndarray
    """(N,) float64, how far that is; 0 for a copy."""
    reference_distance_m: np.ndarray
    """(M,) float64, how far each reference image is from its nearest other one; infinity for a
    single one."""


def blocks_of(samples: int, reference: int) -> int:
    """How often ``find_neighbours`` calls ``measured``."""
    rows = (reference, reference), (samples, samples), (samples, reference)
    return sum(-(-n // _ROWS) * -(-m // _COLUMNS) for n, m in rows)


def find_neighbours(
    samples_nf: np.ndarray,
    reference_mf: np.ndarray,
    measured: Callable[[], None] = lambda: None,
) -> Neighbours:
    """samples_nf, reference_mf: features of at least one image. measured: see ``blocks_of``."""
    # around their mean, because products of far-off points lose digits
    mean_f = reference_mf.mean(0, dtype=np.float64)
    samples, reference = _Points(samples_nf, mean_f), _Points(reference_mf, mean_f)
    own_mk, other_m = _nearest_others(reference, DENSITY_K, measured)
    own_nk, _ = _nearest_others(samples, PRECISION_K, measured)
    n, m = len(samples), len(reference)
    # what has too few neighbours has a radius below all distances
    radius_m, wide_m, radius_n = own_mk[:, PRECISION_K - 1], own_mk[:, -1], own_nk[:, -1]

    is_precise_n, is_recalled_m, is_covered_m = (np.zeros(k, bool) for k in (n, m, m))
    density, smallest_n, nearest_n = 0, np.full(n, np.inf), np.zeros(n, np.intp)
    for rows, columns, squared_bc, rounding_bc in _distances(samples, reference):
        below_bc = squared_bc - rounding_bc
        is_precise_n[rows] |= (below_bc <= radius_m[columns]).any(1)
        is_recalled_m[columns] |= (below_bc <= radius_n[rows, None]).any(0)
        is_inside_bc = squared_bc + rounding_bc < wide_m[columns]
        density += int(is_inside_bc.sum())
        is_covered_m[columns] |= is_inside_bc.any(0)
        _keep_nearest(smallest_n[rows], nearest_n[rows], squared_bc, columns.start)
        measured()
    return Neighbours(
        precision=float(is_precise_n.mean()) if m > PRECISION_K else None,
        recall=float(is_recalled_m.mean()) if n > PRECISION_K else None,
        density=density / (DENSITY_K * n) if m > DENSITY_K else None,
        coverage=float(is_covered_m.mean()) if m > DENSITY_K else None,
        nearest_n=nearest_n,
        distance_n=_lengths(samples, reference, nearest_n),
        reference_distance_m=(
            _lengths(reference, reference, other_m) if m > 1 else np.full(m, np.inf)
        ),
    )


class _Points:
    """Features (N, F), which it gives in float64 and around ``mean_f``, some rows at a time."""

    def __init__(self, features_nf: np.ndarray, mean_f: np.ndarray) -> None:
        self._features_nf, self._mean_f = features_nf, mean_f
        self.features = len(mean_f)
        self.squares_n = np.concatenate(
            [np.einsum("bf,bf->b", *[self[rows]] * 2) for rows in _slices(len(self), _COLUMNS)]
        )

    def __len__(self) -> int:
        return len(self._features_nf)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return np.asarray(self._features_nf[rows] - self._mean_f, np.float64)


def _slices(count: int, size: int) -> Iterator[slice]:
    for begin in range(0, count, size):
        yield slice(begin, min(begin + size, count))


def _distances(
    one: _Points, other: _Points
) -> Iterator[tuple[slice, slice, np.ndarray, np.ndarray]]:
    """Yields rows, columns, and squared distances (B, C) with a bound of their rounding."""
    # twice that of a product of two vectors: the radii are rounded, too
    unit = 4 * one.features * np.finfo(np.float64).eps
    for rows in _slices(len(one), _ROWS):
        one_bf = one[rows]
        for columns in _slices(len(other), _COLUMNS):
            sums_bc = one.squares_n[rows, None] + other.squares_n[columns]
            yield rows, columns, sums_bc - 2 * (one_bf @ other[columns].T), unit * sums_bc


def _nearest_others(
    points: _Points, k: int, measured: Callable[[], None]
) -> tuple[np.ndarray, np.ndarray]:
    """(N, k) the squared distances of the k nearest others, in order, and (N,) which is nearest.

    Where there are fewer, the distance is minus infinity.
    """
    smallest_nk = np.full((len(points), k), np.inf)
    smallest_n, nearest_n = np.full(len(points), np.inf), np.zeros(len(points), np.intp)
    for rows, columns, squared_bc, _ in _distances(points, points):
        own = np.arange(max(rows.start, columns.start), min(rows.stop, columns.stop))
        squared_bc[own - rows.start, own - columns.start] = np.inf
        _keep_nearest(smallest_n[rows], nearest_n[rows], squared_bc, columns.start)
        candidates_bc = np.concatenate([smallest_nk[rows], squared_bc], axis=1)
        smallest_nk[rows] = np.sort(np.partition(candidates_bc, k - 1, axis=1)[:, :k], axis=1)
        measured()
    return np.where(np.isinf(smallest_nk), -np.inf, smallest_nk), nearest_n


def _keep_nearest(
    smallest_b: np.ndarray, nearest_b: np.ndarray, squared_bc: np.ndarray, begin: int
) -> None:
    """Takes the nearest of a block's columns, the first of which is ``begin``, where it is nearer.

    Writes into the first two arrays.
    """
    found_b = squared_bc.argmin(1)
    found_squared_b = np.take_along_axis(squared_bc, found_b[:, None], 1)[:, 0]
    is_nearer_b = found_squared_b < smallest_b
    smallest_b[is_nearer_b] = found_squared_b[is_nearer_b]
    nearest_b[is_nearer_b] = found_b[is_nearer_b] + begin


def _lengths(one: _Points, other: _Points, nearest_n: np.ndarray) -> np.ndarray:
    """(N,) the distance of each from its nearest, as a length: exactly 0 for a copy."""
    return np.concatenate(
        [
            np.linalg.norm(one[rows] - other[nearest_n[rows]], axis=1)
            for rows in _slices(len(one), _ROWS)
        ]
    )
