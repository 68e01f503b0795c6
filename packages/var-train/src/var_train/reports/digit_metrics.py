"""How real generated digits look: a judge, how distinct they are, and nearest neighbours.

Images are (N, 3, Y, X), float in [0, 1] or uint8; distances are Euclidean over all 3 * Y * X
values in [0, 1].
"""

import numpy as np
from var_tokenizer.common import InputError, to_unit_range

from var_train.data.image_sources import ImageSet

JUDGED_SIZE = 8  # the size at which the digits were recorded; finer pixels judge no better


class DigitJudge:
    """A classifier of digits trained only on real training images.

    It is a support vector machine (RBF kernel, C = 10) on grey 8x8 pixels.
    """

    def __init__(self, train: ImageSet) -> None:
        from sklearn.svm import SVC  # not before it is needed: it takes a second

        self._svm = SVC(C=10, gamma="scale")
        self._svm.fit(_judged(_real_values(train)), train.labels_n)

    def accuracy(self, images_ncyx: np.ndarray, labels_n: np.ndarray) -> float:
        """The share of ``images_ncyx`` that it labels correctly, 0 to 1.

        Raises InputError for no images, for values out of range, and for sides that are not
        multiples of 8.
        """
        return float(np.mean(self.correct(images_ncyx, labels_n)))

    def correct(self, images_ncyx: np.ndarray, labels_n: np.ndarray) -> np.ndarray:
        """(N,) bool: which of ``images_ncyx`` it labels correctly. Raises as ``accuracy`` does."""
        return self._svm.predict(self.features(images_ncyx)) == labels_n

    def features(self, images_ncyx: np.ndarray) -> np.ndarray:
        """What it judges: (N, 64) grey 8x8 pixels in [0, 1]. Raises as ``accuracy`` does."""
        return _judged(_values(images_ncyx))


def distinct(images_ncyx: np.ndarray, labels_n: np.ndarray, real: ImageSet) -> float:
    """How much the images of a class differ from each other, relative to real ones.

    The mean pairwise distance within a class, divided by that of ``real`` images of the class and
    averaged over the classes in ``labels_n``: 0 if every class repeats one image, about 1 for
    images as varied as real ones. Raises InputError for a class with fewer than two images.
    """
    values_ncyx, real_ncyx = _values(images_ncyx), _real_values(real)
    ratios = []
    for label in np.unique(labels_n):
        made = values_ncyx[np.asarray(labels_n) == label]
        genuine = real_ncyx[real.labels_n == label]
        if min(len(made), len(genuine)) < 2:
            raise InputError(
                f"label {label} has {len(made)} image(s) and {len(genuine)} real one(s); "
                "expected at least two of each to compare"
            )
        ratios.append(_mean_pairwise_distance(made) / _mean_pairwise_distance(genuine))
    return float(np.mean(ratios))


def nearest_train_distance(
    images_ncyx: np.ndarray, train: ImageSet, test: ImageSet
) -> dict[str, float]:
    """How far each image is from its nearest training image; a copy has distance 0.

    Returns "mean", "median" and "min" over the images and, for comparison, "real_mean",
    "real_median" and "real_min" over the real images of ``test``.
    """
    real_nv = _flat(_real_values(train))
    return _statistics(
        _nearest(_values(images_ncyx), real_nv), _nearest(_real_values(test), real_nv)
    )


class DigitReport:
    """How real the digits of a run look, compared with real ones. It keeps no images of the run."""

    def __init__(self, train: ImageSet, val: ImageSet) -> None:
        self._train, self._val, self._judge = train, val, DigitJudge(train)
        self._train_nv = _flat(_real_values(train))
        self._reconstructed: list[np.ndarray] = []  # of each batch, which images the judge knows
        self._generated: list[np.ndarray] = []
        self._distances: list[np.ndarray] = []
        self._distinct: list[float | None] = []

    def add_reconstructions(self, images_ncyx: np.ndarray, labels_n: np.ndarray) -> None:
        """Some of the reconstructions, (N, 3, Y, X) in [-1, 1], and their labels."""
        self._reconstructed.append(self._judge.correct(to_unit_range(images_ncyx), labels_n))

    def add_class(self, images_ncyx: np.ndarray, label: int) -> None:
        """All generated images of a class, (N, 3, Y, X) in [0, 1]."""
        labels_n = np.full(len(images_ncyx), label)
        self._generated.append(self._judge.correct(images_ncyx, labels_n))
        self._distances.append(_nearest(_values(images_ncyx), self._train_nv))
        several = len(images_ncyx) > 1  # a single one has nothing to differ from
        self._distinct.append(distinct(images_ncyx, labels_n, self._train) if several else None)

    def figures(self) -> dict[str, object]:
        """Those of all that was added. "distinct" is None if a class has a single image."""
        real_val, labels_n = self._val.images_nyxc.transpose(0, 3, 1, 2), self._val.labels_n
        known = [ratio for ratio in self._distinct if ratio is not None]
        return {
            "judge_accuracy": self._judge.accuracy(real_val, labels_n),
            "reconstruction_accuracy": float(np.mean(np.concatenate(self._reconstructed))),
            "generated_accuracy": float(np.mean(np.concatenate(self._generated))),
            "distinct": float(np.mean(known)) if len(known) == len(self._distinct) else None,
            "nearest_train_distance": _statistics(
                np.concatenate(self._distances),
                _nearest(_real_values(self._val), self._train_nv),
            ),
        }


def _nearest(values_ncyx: np.ndarray, real_nv: np.ndarray) -> np.ndarray:
    """(N,): the distance of each image from the nearest of ``real_nv``."""
    from sklearn.metrics import pairwise_distances_argmin_min

    return pairwise_distances_argmin_min(_flat(values_ncyx), real_nv)[1]


def _flat(values_ncyx: np.ndarray) -> np.ndarray:
    return values_ncyx.reshape(len(values_ncyx), -1)


def _statistics(distance_n: np.ndarray, real_distance_n: np.ndarray) -> dict[str, float]:
    statistics = (("mean", np.mean), ("median", np.median), ("min", np.min))
    return {
        prefix + name: float(statistic(distances))
        for prefix, distances in (("", distance_n), ("real_", real_distance_n))
        for name, statistic in statistics
    }


def _values(images_ncyx: np.ndarray) -> np.ndarray:
    """Images as float64 in [0, 1]."""
    images_ncyx = np.asarray(images_ncyx)
    if images_ncyx.ndim != 4 or images_ncyx.shape[1] != 3 or not len(images_ncyx):
        raise InputError(f"images have shape {images_ncyx.shape}; expected (N, 3, Y, X), N > 0")
    if images_ncyx.dtype == np.uint8:
        return images_ncyx / 255
    low, high = images_ncyx.min(), images_ncyx.max()
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # NaN fails too; rounding errors pass
        raise InputError(f"images range from {low:.3g} to {high:.3g}; expected [0, 1] or uint8")
    return images_ncyx.astype(np.float64)


def _real_values(images: ImageSet) -> np.ndarray:
    return _values(images.images_nyxc.transpose(0, 3, 1, 2))


def _judged(values_ncyx: np.ndarray) -> np.ndarray:
    """(N, 3, Y, X) as the (N, 64) grey area averages that the judge sees."""
    n, _, height, width = values_ncyx.shape
    if height % JUDGED_SIZE or width % JUDGED_SIZE:
        raise InputError(f"images are {height}x{width}; expected sides that {JUDGED_SIZE} divides")
    blocks = values_ncyx.mean(axis=1).reshape(
        n, JUDGED_SIZE, height // JUDGED_SIZE, JUDGED_SIZE, width // JUDGED_SIZE
    )
    return blocks.mean(axis=(2, 4)).reshape(n, -1)


def _mean_pairwise_distance(values_ncyx: np.ndarray) -> float:
    """Mean over all pairs of images."""
    from sklearn.metrics import pairwise_distances

    n = len(values_ncyx)
    distance_nn = pairwise_distances(values_ncyx.reshape(n, -1))
    return float(distance_nn.sum() / (n * (n - 1)))
