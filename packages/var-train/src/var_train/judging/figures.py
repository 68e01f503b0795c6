"""Figures of two sets of images that follow from their features alone, in float64.

Frechet distance (arXiv:1706.08500, and of spatial features arXiv:2103.03841), Inception Score
(arXiv:1606.03498) and kernel distance (arXiv:1801.01401). ``neighbours`` has those of nearest
neighbours.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from var_tokenizer.common import InputError

PARTS = 10  # of a set, over which the Inception Score has a mean and a deviation
SUBSET, SUBSETS = 1000, 100  # of the kernel distance
_SEED = 2020  # torch-fidelity's, for the same parts and subsets
_LEAST_ROWS = 1024  # of a block, of which a QR decomposition is worth while


@dataclass(frozen=True)
class Gaussian:
    """The normal distribution that a Frechet distance takes a set's features for.

    mean_f: (F,) float64. root_mf: (M, F) float64, A with A'A = the covariance. The root keeps
    twice the digits of the covariance, whose own root (sqrtm) turns complex or NaN for fewer images
    than features.
    """

    mean_f: np.ndarray
    root_mf: np.ndarray

    @classmethod
    def of(cls, features_nf: np.ndarray) -> "Gaussian":
        """Raises ValueError for fewer than two images, which have no covariance."""
        moments = Moments()
        moments.add(features_nf)
        return moments.gaussian()

    @classmethod
    def of_covariance(cls, mean_f: np.ndarray, covariance_ff: np.ndarray) -> "Gaussian":
        """From saved statistics; what rounding alone left in singular directions counts as 0.

        Raises ValueError for negative variances beyond rounding, that of float32 sums included.
        """
        variance_f, directions_ff = np.linalg.eigh(np.asarray(covariance_ff, np.float64))
        if variance_f[0] < -1e-3 * max(variance_f[-1], 0.0):
            raise ValueError(f"has a variance of {variance_f[0]:.3g}; expected none below 0")
        noise = len(variance_f) * np.finfo(np.float64).eps * max(variance_f[-1], 0.0)
        real_m = variance_f > noise
        root_mf = np.sqrt(variance_f[real_m])[:, None] * directions_ff.T[real_m]
        return cls(np.asarray(mean_f, np.float64), root_mf)

    @property
    def covariance_ff(self) -> np.ndarray:
        return self.root_mf.T @ self.root_mf


class Moments:
    """Gathers a ``Gaussian`` from features that come in batches, and keeps none of them.

    The root of the sums is the R of a QR decomposition: of the root so far, on top of a block's
    rows around their mean and of the term between both means (Chan et al. 1983).
    """

    def __init__(self) -> None:
        self.count = 0
        self._mean_f = np.zeros(0)
        self._root_mf = np.zeros((0, 0))
        self._waiting: list[np.ndarray] = []

    def add(self, features_bf: np.ndarray) -> None:
        """(B, F), floats of any width."""
        rows = max(_LEAST_ROWS, 2 * features_bf.shape[1])
        for begin in range(0, len(features_bf), rows):
            self._waiting.append(features_bf[begin : begin + rows])
            if sum(map(len, self._waiting)) >= rows:
                self._take_waiting()

    def merge(self, other: "Moments") -> "Moments":
        """Those of both sets."""
        both = Moments()
        for part in (self, other):
            part._take_waiting()
            if part.count:
                both._join(part.count, part._mean_f, part._root_mf)
        return both

    def gaussian(self) -> Gaussian:
        """Raises ValueError for fewer than two images, which have no covariance."""
        self._take_waiting()
        if self.count < 2:
            raise ValueError(f"{self.count} image(s); expected at least 2 for a covariance")
        return Gaussian(self._mean_f, self._root_mf / math.sqrt(self.count - 1))

    def _take_waiting(self) -> None:
        if not self._waiting:
            return
        block_nf = np.concatenate(self._waiting, dtype=np.float64)
        self._waiting = []
        mean_f = block_nf.mean(0)
        block_nf -= mean_f
        self._join(len(block_nf), mean_f, block_nf)

    def _join(self, count: int, mean_f: np.ndarray, rows_mf: np.ndarray) -> None:
        """Adds ``count`` images. rows_mf: theirs around their mean, or the root of these."""
        if not self.count:
            self._mean_f, self._root_mf = mean_f, np.zeros((0, len(mean_f)))
        total = self.count + count
        between_f = mean_f - self._mean_f
        weighted_f = between_f * math.sqrt(self.count * count / total)
        stacked = np.concatenate([self._root_mf, rows_mf, weighted_f[None]])
        self._root_mf = np.asarray(np.linalg.qr(stacked, mode="r"))
        self._mean_f = self._mean_f + between_f * (count / total)
        self.count = total


def frechet_distance(one: Gaussian, other: Gaussian) -> float:
    """|m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1 C_2)^(1/2)), exact for covariances of any rank."""
    # For covariances A'A and B'B, the trace of the root of their product is the sum of the singular
    # values of AB', which are real for any rank.
    overlap = np.linalg.svd(one.root_mf @ other.root_mf.T, compute_uv=False).sum()
    mean_f = one.mean_f - other.mean_f
    spread = (one.root_mf**2).sum() + (other.root_mf**2).sum()
    return max(0.0, float(mean_f @ mean_f + spread - 2 * overlap))  # rounding can take it below 0


class ClassScore:
    """The Inception Score: exp of the mean divergence of p(class | image) from p(class).

    part_n: (N,) ints from 0; which part of the set each image is in. The score has a mean and a
    deviation over the parts. It keeps sums alone.
    """

    def __init__(self, part_n: np.ndarray) -> None:
        self._part_n = part_n
        self._counts_s = np.bincount(part_n)
        self._sums_sk: np.ndarray | None = None
        self._negentropy_s = np.zeros(len(self._counts_s))
        self._done = 0

    def add(self, logits_bk: np.ndarray) -> None:
        """(B, K) logits of the next images."""
        probability_bk, logarithm_bk = probabilities(logits_bk)
        parts_b = self._part_n[self._done : self._done + len(logits_bk)]
        self._done += len(logits_bk)
        if self._sums_sk is None:
            self._sums_sk = np.zeros((len(self._counts_s), logits_bk.shape[1]))
        np.add.at(self._sums_sk, parts_b, probability_bk)
        np.add.at(self._negentropy_s, parts_b, (probability_bk * logarithm_bk).sum(1))

    def score(self) -> tuple[float, float]:
        """Mean and deviation over the parts."""
        assert self._sums_sk is not None and self._done == len(self._part_n)
        mean_sk = self._sums_sk / self._counts_s[:, None]
        entropy_s = -(mean_sk * np.log(np.where(mean_sk > 0, mean_sk, 1))).sum(1)
        scores_s = np.exp(self._negentropy_s / self._counts_s + entropy_s)
        return float(scores_s.mean()), float(scores_s.std())


def shuffled_parts(count: int) -> np.ndarray:
    """(count,) ints: 10 parts of equal size, in the order that torch-fidelity shuffles.

    Files are often sorted by class, and a part of one class alone would have the score 1.
    """
    part_n = np.empty(count, np.intp)
    places_n = np.arange(count)
    order_n = np.random.RandomState(_SEED).permutation(count)
    part_n[order_n] = np.searchsorted(
        [i * count // PARTS for i in range(1, PARTS)], places_n, side="right"
    )
    return part_n


def probabilities(logits_bk: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Softmax and its logarithm, both (B, K) float64."""
    shifted_bk = logits_bk.astype(np.float64)
    shifted_bk -= shifted_bk.max(1, keepdims=True)
    logarithm_bk = shifted_bk - np.log(np.exp(shifted_bk).sum(1, keepdims=True))
    return np.exp(logarithm_bk), logarithm_bk


def kernel_distance(
    samples_nf: np.ndarray,
    reference_mf: np.ndarray,
    measured: Callable[[], None] = lambda: None,
) -> tuple[float, float]:
    """Mean and deviation, over 100 pairs of random subsets of 1,000, of the unbiased squared MMD.

    The kernel is (x'y / F + 1)^3. The subsets are those that torch-fidelity draws. It may fall
    below 0. measured: called after each pair. Raises InputError for fewer than 1,000 images.
    """
    least = min(len(samples_nf), len(reference_mf))
    if least < SUBSET:
        raise InputError(f"{least} images; expected at least {SUBSET} for a kernel distance")
    random = np.random.RandomState(_SEED)
    distances = []
    for _ in range(SUBSETS):
        x_sf, y_sf = (
            features[random.choice(len(features), SUBSET, replace=False)].astype(np.float64)
            for features in (samples_nf, reference_mf)
        )
        within = _kernel(x_sf, x_sf, diagonal=False) + _kernel(y_sf, y_sf, diagonal=False)
        between = _kernel(x_sf, y_sf, diagonal=True)
        distances.append(within / (SUBSET * (SUBSET - 1)) - 2 * between / SUBSET**2)
        measured()
    return float(np.mean(distances)), float(np.std(distances))


def _kernel(x_sf: np.ndarray, y_sf: np.ndarray, diagonal: bool) -> float:
    """The sum over all pairs, or over all but those of an image with itself."""
    linear_ss = x_sf @ y_sf.T
    linear_ss /= x_sf.shape[1]
    linear_ss += 1
    kernel_ss = linear_ss * linear_ss
    kernel_ss *= linear_ss  # ** 3 takes ten times as long
    return float(kernel_ss.sum() - (0 if diagonal else np.trace(kernel_ss)))
