"""Figures of a tokenizer against their definitions, the Frechet distance against closed forms."""

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from var_tokenizer import Tokenizer
from var_tokenizer.common import InputError, to_model_range, to_pixels, to_unit_range
from var_train.data.image_sources import ImageSet
from var_train.judging.figures import Gaussian, frechet_distance
from var_train.judging.networks import Features
from var_train.reports.tokenizer_quality import measure_tokenizer


@pytest.mark.parametrize("side", [3, 4, 6])
def test_ssim_fits_its_windows_into_small_images(side):
    config = tiny.tokenizer(channel_multipliers=(1,), scales=(1, side))
    pixels = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    images = ImageSet(pixels, np.zeros(3, np.int32), ("a",))
    figures = measure_tokenizer(Tokenizer(config, 0), images, 2)
    assert figures.images == 3 and -1 <= figures.ssim <= 1


@pytest.mark.parametrize("batch", [2, 5])
def test_figures_are_means_over_the_images_whatever_the_batch(batch):
    tokenizer = Tokenizer(tiny.tokenizer(channel_multipliers=(1,), scales=(1, 8)), 0)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    images = ImageSet(pixels, np.zeros(5, np.int32), ("a",))
    figures = measure_tokenizer(tokenizer, images, batch)
    originals = to_model_range(pixels)
    ids = [np.asarray(i) for i in tokenizer.encode(originals)]
    error_n = ((np.asarray(tokenizer.decode(ids)) - originals).astype(np.float64) ** 2).mean(
        (1, 2, 3)
    )
    assert figures.psnr == pytest.approx((10 * np.log10(4 / error_n)).mean(), rel=1e-5)
    assert figures.scale_codes_used == [len(np.unique(i)) for i in ids]
    assert figures.codebook_usage == len(np.unique(np.concatenate(ids, 1))) / 32


class Flat:
    """A network whose features are an image's first pixels."""

    name, identity = "FD-Flat", "0"

    def __init__(self, factor: float = 1.0):
        self.factor = factor

    def features(self, images_byxc: np.ndarray) -> Features:
        assert images_byxc.dtype == np.uint8
        flat_bf = images_byxc.reshape(len(images_byxc), -1)[:, :6].astype(np.float32)
        return Features(flat_bf * np.float32(self.factor), None, None)


def five_images() -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    return ImageSet(pixels, np.zeros(5, np.int32), ("a",))


def test_the_distance_of_features_is_that_of_the_reconstructed_pixels_under_the_networks_name():
    tokenizer = Tokenizer(tiny.tokenizer(channel_multipliers=(1,), scales=(1, 8)), 0)
    images = five_images()
    figures = measure_tokenizer(tokenizer, images, 2, network=Flat())
    decoded = np.asarray(tokenizer.decode(tokenizer.encode(to_model_range(images.images_nyxc))))
    outputs = to_pixels(to_unit_range(decoded))
    features = [Flat().features(pixels).pooled_bf for pixels in (images.images_nyxc, outputs)]
    expected = distance(*features)
    assert figures.frechet == pytest.approx(expected, rel=1e-3)  # a pixel may be rounded otherwise
    report = figures.report()
    assert report["FD-Flat"] == figures.frechet and not {"fid", "frechet", "network"} & {*report}
    assert not {"FD-Flat", "frechet"} & {*measure_tokenizer(tokenizer, images, 2).report()}


def test_features_that_are_not_finite_are_refused():
    tokenizer = Tokenizer(tiny.tokenizer(channel_multipliers=(1,), scales=(1, 8)), 0)
    with pytest.raises(InputError, match="FD-Flat: features are NaN or infinite"):
        measure_tokenizer(tokenizer, five_images(), 2, network=Flat(float("nan")))


def test_the_distance_of_one_image_is_refused_before_it_is_encoded(monkeypatch):
    tokenizer = Tokenizer(tiny.tokenizer(channel_multipliers=(1,), scales=(1, 8)), 0)
    monkeypatch.setattr(tokenizer, "encode", None)
    one = ImageSet(np.zeros((1, 8, 8, 3), np.uint8), np.zeros(1, np.int32), ("a",))
    with pytest.raises(InputError, match=r"1 image\(s\); expected at least 2 for FD-F"):
        measure_tokenizer(tokenizer, one, 1, network=Flat())


SEEDS = st.integers(0, 2**32 - 1)
FEATURES = st.integers(1, 40)
COUNTS = st.integers(2, 60)  # fewer and more than the features
no_deadline = settings(deadline=None)  # a machine may be busy elsewhere


def drawn(seed: int, count: int, features: int) -> np.ndarray:
    """Correlated features around another mean."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((count, features)) @ rng.standard_normal((features, features))
    return mixed + 3 * rng.standard_normal(features)


def rotation(seed: int, features: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((features, features)))[0]


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return frechet_distance(Gaussian.of(one), Gaussian.of(other))


def scale_of(*sets: np.ndarray) -> float:
    """What rounding is relative to: the sum of all variances."""
    return sum(float(np.trace(np.atleast_2d(np.cov(s, rowvar=False)))) for s in sets)


@no_deadline
@given(seed=SEEDS, count=COUNTS, features=FEATURES)
def test_the_distance_of_equal_sets_is_0_whatever_their_order(seed, count, features):
    real = drawn(seed, count, features)
    again = np.random.default_rng(seed).permutation(real)
    for other in (real, again):
        assert 0 <= distance(real, other) <= 1e-10 * scale_of(real)


@no_deadline
@given(seed=SEEDS, count=COUNTS, features=FEATURES)
def test_the_distance_of_a_shifted_set_is_the_squared_length_of_the_shift(seed, count, features):
    real = drawn(seed, count, features)
    shift = np.random.default_rng(seed + 1).standard_normal(features)
    expected = float(shift @ shift)
    assert distance(real, real + shift) == pytest.approx(expected, abs=1e-9 * (1 + scale_of(real)))


@no_deadline
@given(seed=SEEDS, count=COUNTS, features=FEATURES, factor=st.floats(0, 10))
def test_the_distance_of_a_stretched_set_is_the_squared_difference_of_deviations(
    seed, count, features, factor
):
    """The covariances are C and factor**2 C, whose product has the root factor * C."""
    real = drawn(seed, count, features)
    stretched = real.mean(0) + factor * (real - real.mean(0))
    variance = scale_of(real)
    expected = (1 - factor) ** 2 * variance
    assert distance(real, stretched) == pytest.approx(
        expected, abs=1e-10 * (1 + factor**2) * variance
    )


def with_deviations(deviations_f: np.ndarray) -> np.ndarray:
    """2 F points on the axes, whose covariance is diagonal with these deviations, exactly."""
    points = np.diag(deviations_f) * np.sqrt((2 * len(deviations_f) - 1) / 2)
    return np.concatenate((points, -points))


@no_deadline
@given(seed=SEEDS, features=FEATURES, data=st.data())
def test_the_distance_of_diagonal_covariances_is_that_of_deviations_squared(seed, features, data):
    one, other = (
        np.array(data.draw(st.lists(st.floats(0, 10), min_size=features, max_size=features)))
        for _ in range(2)
    )
    turned = rotation(seed, features)  # which changes no distance
    mean = np.random.default_rng(seed).standard_normal(features)
    found = distance(with_deviations(one) @ turned, (with_deviations(other) + mean) @ turned)
    expected = ((one - other) ** 2).sum() + mean @ mean
    assert found == pytest.approx(expected, abs=1e-8 * (1 + (one**2).sum() + (other**2).sum()))


@no_deadline
@given(seed=SEEDS, counts=st.tuples(COUNTS, COUNTS), features=FEATURES)
def test_the_distance_is_finite_symmetric_and_rotation_invariant(seed, counts, features):
    one, other = drawn(seed, counts[0], features), drawn(seed + 1, counts[1], features)
    turned = rotation(seed, features)
    found = distance(one, other)
    assert np.isfinite(found) and found >= 0
    for same in (distance(other, one), distance(one @ turned, other @ turned)):
        assert same == pytest.approx(found, rel=1e-9, abs=1e-9 * scale_of(one, other))


def test_the_distance_of_many_images_is_the_published_formula():
    """With the matrix root of the product, which is sound where both covariances are."""
    one, other = drawn(0, 2000, 8), drawn(1, 3000, 8)
    covariances = [np.cov(s, rowvar=False) for s in (one, other)]
    mean_f = one.mean(0) - other.mean(0)
    expected = mean_f @ mean_f + np.trace(sum(covariances))
    expected -= 2 * np.trace(sqrtm(covariances[0] @ covariances[1])).real
    assert distance(one, other) == pytest.approx(expected, rel=1e-9)


def test_the_distance_of_fewer_images_than_features_is_measured():
    real = drawn(0, 3, 512)
    assert distance(real, real[:2]) > 0
    assert distance(real, real.copy()) <= 1e-10 * scale_of(real)
