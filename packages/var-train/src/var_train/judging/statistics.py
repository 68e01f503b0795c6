"""What is known of a set of images by a network's features, and its file.

The file is an ``.npz`` in the layout of OpenAI's reference batches, ``mu``, ``sigma``, ``mu_s`` and
``sigma_s``, with two further arrays: ``features``, those of the images that neighbours are looked
for among, and ``about``, JSON that names the network. Without ``about`` it is of the Inception of
2015.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from var_tokenizer.common import InputError, quoted, replacing

from var_train.judging.figures import Gaussian
from var_train.judging.networks import JudgeNetwork
from var_train.judging.npz_files import NpzFile

MOST_KEPT = 50_000  # images whose features are kept: at 2,048 of them, 390 MiB
INCEPTION = "FID"  # the name of the figure that belongs to the Inception of 2015 alone
_MOST_FEATURES = 8192
_LONGEST_ABOUT = 2**16
_PART = 2**20  # numbers that are checked at once
_LARGEST = (
    1e15  # a feature; those of networks are below 1e4, and float32 holds the squares of these
)


@dataclass(frozen=True, eq=False)
class SetStatistics:
    """A set of N images as a network of F features sees it."""

    images: int | None
    """N; None if a file does not say."""
    pooled: Gaussian | None
    """None for a single image, which has no covariance."""
    spatial: Gaussian | None = None
    """None without spatial features, too."""
    features_nf: np.ndarray | None = None
    """float32, of evenly spaced images if there are many; None if a file has none."""
    score: tuple[float, float] | None = None
    """Mean and deviation of the Inception Score; None without logits, and for too few images."""
    spatial_halves: tuple[Gaussian, Gaussian] | None = None
    """Those of two random halves of the set."""
    accuracy: float | None = None
    """The share of the images that the network takes for the class that was asked for."""
    probability_n: np.ndarray | None = None
    """(N,) float64, the probability of that class."""


def save_statistics(path: Path, statistics: SetStatistics, network: JudgeNetwork) -> None:
    """Writes ``statistics`` of at least two images, whole or not at all."""
    about = {
        "network": network.name,
        "identity": network.identity,
        "images": statistics.images,
        "score": statistics.score,
    }
    assert statistics.pooled is not None and statistics.features_nf is not None
    arrays = {
        "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
        "mu": statistics.pooled.mean_f,
        "sigma": statistics.pooled.covariance_ff,
        "features": statistics.features_nf,
    }
    if statistics.spatial is not None:
        arrays["mu_s"] = statistics.spatial.mean_f
        arrays["sigma_s"] = statistics.spatial.covariance_ff
    with replacing(path) as temporary:
        np.savez(temporary, **arrays)


def load_statistics(file: NpzFile, network: JudgeNetwork) -> SetStatistics:
    """What ``save_statistics`` or OpenAI's evaluator wrote, for ``network``.

    Raises InputError for statistics of another network, and for arrays that do not fit together.
    """
    about = _about(file)
    if about is None:
        name, identity = INCEPTION, network.identity  # which nobody noted
    else:
        name, identity = str(about.get("network")), str(about.get("identity"))
    if (name, identity) != (network.name, network.identity):
        raise InputError(
            f"{quoted(file.path)}: statistics by the network of {quoted(name)} "
            f"({quoted(identity[:12])}); expected {network.name} ({network.identity[:12]}), the "
            "judge: choose theirs with --judge, or give images"
        )
    return SetStatistics(
        images=_images(file, about),
        pooled=_gaussian(file, "mu", "sigma"),
        spatial=_gaussian(file, "mu_s", "sigma_s") if "mu_s" in file.arrays else None,
        features_nf=_features(file, about) if "features" in file.arrays else None,
        score=_score(file, about),
    )


def _about(file: NpzFile) -> dict[str, object] | None:
    if "about" not in file.arrays:
        return None
    array = file.arrays["about"]
    if array.dtype == np.uint8 and len(array.shape) == 1 and array.shape[0] <= _LONGEST_ABOUT:
        try:
            about = json.loads(file.read("about").tobytes())
        except (ValueError, RecursionError):
            about = None
        if isinstance(about, dict):
            return about
    raise InputError(f"{quoted(file.path)}: about is damaged; expected JSON that names a network")


def _images(file: NpzFile, about: dict[str, object] | None) -> int | None:
    if about is None:
        return None
    count = about.get("images")
    if not isinstance(count, int) or count < 2:
        raise InputError(f"{quoted(file.path)}: about has no number of images; expected one")
    return count


def _score(file: NpzFile, about: dict[str, object] | None) -> tuple[float, float] | None:
    score = (about or {}).get("score")
    if score is None:
        return None
    if (
        not isinstance(score, list)
        or len(score) != 2
        or not all(isinstance(value, float) and np.isfinite(value) for value in score)
    ):
        raise InputError(f"{quoted(file.path)}: score in about is damaged; expected two numbers")
    return score[0], score[1]


def _gaussian(file: NpzFile, mean: str, covariance: str) -> Gaussian:
    for name in (mean, covariance):
        if name not in file.arrays:
            raise InputError(
                f"{quoted(file.path)}: has no {name}; expected {mean} and {covariance}"
            )
    count = file.arrays[mean].shape[0] if len(file.arrays[mean].shape) == 1 else 0
    if not 1 <= count <= _MOST_FEATURES:
        raise InputError(
            f"{quoted(file.path)}: {mean} has shape {file.arrays[mean].shape}; expected (F,), F "
            f"from 1 to {_MOST_FEATURES}"
        )
    mean_f = _finite(file, mean, (count,))
    covariance_ff = _finite(file, covariance, (count, count), _LARGEST**2).astype(np.float64)
    spread = float(np.abs(covariance_ff).max())
    if np.abs(covariance_ff - covariance_ff.T).max() > 1e-5 * spread:
        raise InputError(
            f"{quoted(file.path)}: {covariance} is not symmetric; expected covariances"
        )
    try:
        return Gaussian.of_covariance(mean_f, covariance_ff)
    except ValueError as error:
        raise InputError(f"{quoted(file.path)}: {covariance} {error}") from error


def _features(file: NpzFile, about: dict[str, object] | None) -> np.ndarray:
    shape, count = file.arrays["features"].shape, file.arrays["mu"].shape[0]
    images = min(_images(file, about) or 0, MOST_KEPT)
    if shape != (images, count):
        raise InputError(
            f"{quoted(file.path)}: features have shape {shape}; expected ({images}, {count}), as "
            "images and mu say"
        )
    return _finite(file, "features", shape).astype(np.float32, copy=False)


def _finite(file: NpzFile, name: str, shape: tuple[int, ...], most: float = _LARGEST) -> np.ndarray:
    array = file.arrays[name]
    if array.dtype.kind != "f" or array.shape != shape:
        raise InputError(
            f"{quoted(file.path)}: {name} is {array.dtype} {array.shape}; expected floats {shape}"
        )
    values = file.read(name)
    # in float64: float16 has no such limit, and rounds it to infinity
    parts = np.array_split(values, -(-values.size // _PART))
    with np.errstate(over="ignore", invalid="ignore"):
        fits = all((np.abs(p.astype(np.float64)) <= most).all() for p in parts)  # NaN does not
    if not fits:
        raise InputError(
            f"{quoted(file.path)}: {name} holds NaN, infinity or numbers above {most:.0e}; "
            "expected finite floats"
        )
    return values
