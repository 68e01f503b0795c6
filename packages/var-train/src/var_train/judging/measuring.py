"""A set of images by a network's features, batch by batch, and the figures of two such sets."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from var_tokenizer.common import InputError, images_that_fit, quoted

from var_train.judging.figures import (
    PARTS,
    SUBSET,
    SUBSETS,
    ClassScore,
    Gaussian,
    Moments,
    frechet_distance,
    kernel_distance,
    probabilities,
    shuffled_parts,
)
from var_train.judging.neighbours import (
    DENSITY_K,
    PRECISION_K,
    Neighbours,
    blocks_of,
    find_neighbours,
)
from var_train.judging.networks import Features, JudgeNetwork
from var_train.judging.sets import ImagesToJudge
from var_train.judging.statistics import INCEPTION, MOST_KEPT, SetStatistics


@dataclass(frozen=True)
class Figures:
    """How samples compare with a reference. A figure that could not be had is None.

    ``figure_names`` says what they are called, which depends on the network.
    """

    frechet: float | None = None
    spatial_frechet: float | None = None
    score: float | None = None
    score_deviation: float | None = None
    kernel: float | None = None
    kernel_deviation: float | None = None
    precision: float | None = None
    recall: float | None = None
    density: float | None = None
    coverage: float | None = None
    nearest_mean: float | None = None
    """Of the distances from each sample to the nearest image of the reference, between features."""
    nearest_median: float | None = None
    nearest_least: float | None = None
    class_accuracy: float | None = None
    """Share of the samples that the network takes for the class that was asked for."""


# field -> least samples, least reference images
_NEEDED = {
    "frechet": (2, 2),
    "spatial_frechet": (2, 2),
    "score": (PARTS, 0),
    "score_deviation": (PARTS, 0),
    "kernel": (SUBSET, SUBSET),
    "kernel_deviation": (SUBSET, SUBSET),
    "precision": (1, PRECISION_K + 1),
    "recall": (PRECISION_K + 1, 1),
    "density": (1, DENSITY_K + 1),
    "coverage": (1, DENSITY_K + 1),
}


def figure_names(network: str) -> dict[str, str]:
    """The names of the fields of ``Figures``: FID, IS, KID of the Inception of 2015 alone."""
    if network == INCEPTION:
        distance, spatial, score, kernel = "FID", "sFID", "IS", "KID"
    else:
        own = network.removeprefix("FD-")
        distance, spatial, score, kernel = network, f"s{network}", f"IS-{own}", f"KD-{own}"
    return {
        "frechet": distance,
        "spatial_frechet": spatial,
        "score": score,
        "score_deviation": f"{score} deviation",
        "kernel": kernel,
        "kernel_deviation": f"{kernel} deviation",
        "precision": "precision",
        "recall": "recall",
        "density": "density",
        "coverage": "coverage",
        "nearest_mean": "nearest distance",
        "nearest_median": "nearest distance, median",
        "nearest_least": "nearest distance, least",
        "class_accuracy": "class accuracy",
    }


def too_few(samples: int, reference: int) -> dict[str, str]:
    """Field -> why it cannot be had from so many images."""
    found = {}
    for field, (least_samples, least_reference) in _NEEDED.items():
        if samples < least_samples:
            found[field] = f"{samples} samples; expected at least {least_samples}"
        elif reference < least_reference:
            found[field] = f"{reference} reference images; expected at least {least_reference}"
    return found


def measure_set(
    network: JudgeNetwork,
    images: ImagesToJudge,
    batch: int,
    measured: Callable[[int], None] = lambda images: None,
) -> SetStatistics:
    """Looks at all ``images``, ``batch`` at once. measured: called with numbers of images.

    Raises InputError if the features do not fit into memory or are not finite.
    """
    name = quoted(images.path)
    gathered, done = _Gathered(name, len(images), images.labels_n), 0
    for pixels_byxc in images.batches(batch):
        gathered.add(look(network, pixels_byxc, batch))
        done += len(pixels_byxc)
        measured(len(pixels_byxc))
    if done != len(images):
        raise InputError(f"{name}: {done} images; expected {len(images)}")
    return gathered.statistics()


def statistics_of(features: Features, name: str, labels_n: np.ndarray) -> SetStatistics:
    """Of a whole set of N images, which errors call ``name``. labels_n: (N,) ints.

    Raises InputError if the features are not finite.
    """
    gathered = _Gathered(name, len(features.pooled_bf), labels_n)
    gathered.add(features)
    return gathered.statistics()


def look(network: JudgeNetwork, pixels_byxc: np.ndarray, batch: int) -> Features:
    """The features of up to ``batch`` images.

    MindSpore compiles once for batches of one size: repeats fill up a smaller one.
    """
    wanted = len(pixels_byxc)
    padded = np.arange(batch) % wanted
    found = network.features(pixels_byxc if wanted == batch else pixels_byxc[padded])
    others = found.logits_bk, found.spatial_bf, found.described_bd
    return Features(found.pooled_bf[:wanted], *(_first(features, wanted) for features in others))


def _first(features: np.ndarray | None, count: int) -> np.ndarray | None:
    return None if features is None else features[:count]


class _Gathered:
    """The sums of a set's features so far."""

    def __init__(self, name: str, count: int, labels_n: np.ndarray | None) -> None:
        """name: of the set, in errors. labels_n: (``count``,) ints."""
        self._name, self._count, self._labels_n, self._done = name, count, labels_n, 0
        self._kept_n = kept_images(count)
        self._features_nf: np.ndarray | None = None
        self._half_n = halves(count)
        self._pooled, self._spatial = Moments(), (Moments(), Moments())
        self._score = ClassScore(shuffled_parts(count)) if count >= PARTS else None
        self._has_logits = True
        self._probability_n: list[np.ndarray] = []
        self._correct = 0

    def add(self, found: Features) -> None:
        pooled_bf, logits_bk, spatial_bf = found.pooled_bf, found.logits_bk, found.spatial_bf
        places_b = np.arange(self._done, self._done + len(pooled_bf))
        self._done += len(pooled_bf)
        for features in (pooled_bf, logits_bk, spatial_bf):
            if features is not None and not np.isfinite(features).all():
                raise InputError(
                    f"{self._name}: the network gives NaN or infinity for images "
                    f"{places_b[0]} to {places_b[-1]}; expected finite features"
                )
        self._keep(places_b, pooled_bf)
        self._pooled.add(pooled_bf)
        if spatial_bf is not None:
            for half, moments in enumerate(self._spatial):
                moments.add(spatial_bf[self._half_n[places_b] == half])
        self._has_logits = logits_bk is not None
        if logits_bk is not None:
            if self._score is not None:
                self._score.add(logits_bk)
            self._judge_classes(places_b, logits_bk)

    def statistics(self) -> SetStatistics:
        spatial = self._spatial[0].merge(self._spatial[1])
        is_judged = bool(self._probability_n)
        return SetStatistics(
            images=self._count,
            pooled=self._pooled.gaussian() if self._count > 1 else None,
            spatial=spatial.gaussian() if spatial.count > 1 else None,
            features_nf=self._features_nf,
            score=self._score.score() if self._score and self._has_logits else None,
            spatial_halves=(
                (self._spatial[0].gaussian(), self._spatial[1].gaussian())
                if min(half.count for half in self._spatial) > 1
                else None
            ),
            accuracy=self._correct / self._count if is_judged else None,
            probability_n=np.concatenate(self._probability_n) if is_judged else None,
        )

    def _keep(self, places_b: np.ndarray, pooled_bf: np.ndarray) -> None:
        if self._features_nf is None:
            kept, features = len(self._kept_n), pooled_bf.shape[1]
            if images_that_fit(4 * features, kept) < kept:
                raise InputError(
                    f"{self._name}: {features} features of {kept} images take "
                    f"{4 * features * kept >> 20} MiB; expected twice that of free memory"
                )
            self._features_nf = np.empty((kept, features), np.float32)
        first, end = np.searchsorted(self._kept_n, [places_b[0], places_b[-1] + 1])
        self._features_nf[first:end] = pooled_bf[self._kept_n[first:end] - places_b[0]]

    def _judge_classes(self, places_b: np.ndarray, logits_bk: np.ndarray) -> None:
        labels_n = self._labels_n
        if labels_n is None or not are_classes_of(labels_n, logits_bk.shape[1]):
            return
        labels_b = labels_n[places_b]
        self._correct += int((logits_bk.argmax(1) == labels_b).sum())
        probability_bk, _ = probabilities(logits_bk)
        self._probability_n.append(probability_bk[np.arange(len(labels_b)), labels_b])


def are_classes_of(labels_n: np.ndarray, classes: int) -> bool:
    """Whether the labels must be the ``classes`` of a network: they hold each of its numbers.

    Labels of ten other classes would also be numbers of the thousand that a network knows.
    """
    return bool(np.array_equal(np.unique(labels_n), np.arange(classes)))


def kept_images(count: int) -> np.ndarray:
    """The numbers of the images whose features are kept: all, or 50,000 evenly spaced ones."""
    return np.linspace(0, count - 1, min(count, MOST_KEPT)).round().astype(np.intp)


def halves(count: int) -> np.ndarray:
    """(count,) ints: in which of two random halves each image is."""
    half_n: np.ndarray = np.random.default_rng(0).permutation(count) % 2
    return half_n


def steps_of(samples: SetStatistics, reference: SetStatistics) -> int:
    """How often ``compare`` calls ``measured``."""
    if samples.features_nf is None or reference.features_nf is None:
        return 0
    counts = len(samples.features_nf), len(reference.features_nf)
    return blocks_of(*counts) + (SUBSETS if min(counts) >= SUBSET else 0)


def compare(
    samples: SetStatistics,
    reference: SetStatistics,
    measured: Callable[[], None] = lambda: None,
) -> tuple[Figures, Neighbours | None]:
    """The figures of ``samples`` against ``reference``, of one network.

    measured: see ``steps_of``.
    """
    score, deviation = samples.score or (None, None)
    figures = Figures(
        frechet=_frechet(samples.pooled, reference.pooled),
        spatial_frechet=_frechet(samples.spatial, reference.spatial),
        score=score,
        score_deviation=deviation,
        class_accuracy=samples.accuracy,
    )
    features_nf, reference_mf = samples.features_nf, reference.features_nf
    if features_nf is None or reference_mf is None:
        return figures, None
    found = find_neighbours(features_nf, reference_mf, measured)
    figures = replace(
        figures,
        precision=found.precision,
        recall=found.recall,
        density=found.density,
        coverage=found.coverage,
        nearest_mean=float(found.distance_n.mean()),
        nearest_median=float(np.median(found.distance_n)),
        nearest_least=float(found.distance_n.min()),
    )
    if min(len(features_nf), len(reference_mf)) >= SUBSET:
        kernel, kernel_deviation = kernel_distance(features_nf, reference_mf, measured)
        figures = replace(figures, kernel=kernel, kernel_deviation=kernel_deviation)
    return figures, found


def split_halves(reference: SetStatistics) -> tuple[SetStatistics, SetStatistics] | None:
    """Two random halves of a set, which show how low real images against real ones come.

    Both have the score of the whole, so that a table shows it. None for fewer than four images, and
    for a set whose features a file does not have.
    """
    features_nf = reference.features_nf
    if features_nf is None or len(features_nf) < 4:
        return None
    assert reference.images is not None
    half_n = halves(reference.images)[kept_images(reference.images)]
    parts = []
    for half in (0, 1):
        of_half_nf = features_nf[half_n == half]
        parts.append(
            SetStatistics(
                images=len(of_half_nf),
                pooled=Gaussian.of(of_half_nf),
                spatial=reference.spatial_halves and reference.spatial_halves[half],
                features_nf=of_half_nf,
                score=reference.score,
            )
        )
    return parts[0], parts[1]


def _frechet(one: Gaussian | None, other: Gaussian | None) -> float | None:
    return None if one is None or other is None else frechet_distance(one, other)
