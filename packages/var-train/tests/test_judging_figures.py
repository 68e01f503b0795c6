"""Figures of two sets: torch-fidelity's and OpenAI's evaluator's numbers, and what must hold."""

import sys
from importlib.util import find_spec
from types import SimpleNamespace
from unittest.mock import MagicMock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm
from var_tokenizer.common import InputError
from var_train.judging import figures, neighbours
from var_train.judging.figures import (
    ClassScore,
    Gaussian,
    Moments,
    frechet_distance,
    kernel_distance,
    shuffled_parts,
)
from var_train.judging.neighbours import blocks_of, find_neighbours

SEEDS = st.integers(0, 2**32 - 1)
no_deadline = settings(deadline=None, max_examples=40)  # a machine may be busy elsewhere

# samples, reference images, features: many and few images, both covariances singular, one alone
SETS = [(2000, 1500, 16), (1200, 1100, 96), (40, 60, 64), (30, 500, 48), (1001, 1000, 2)]


def drawn(seed: int, count: int, features: int, dead: int = 0) -> np.ndarray:
    """Correlated features that are never negative, as a network's are; ``dead`` ones are all 0."""
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((count, features)) @ rng.standard_normal((features, features))
    values = np.maximum(mixed / np.sqrt(features) + rng.standard_normal(features), 0)
    values[:, features - dead :] = 0
    return values


def pair(number: int) -> tuple[np.ndarray, np.ndarray]:
    samples, reference, features = SETS[number]
    dead = features // 8
    return drawn(number, samples, features, dead), drawn(100 + number, reference, features, dead)


@pytest.fixture(scope="module")
def fidelity() -> SimpleNamespace:
    """torch-fidelity's formulas. It imports torchvision, which they do not use."""
    for needed in ("torch", "torch_fidelity", "tqdm"):
        if find_spec(needed) is None:
            pytest.skip(f"no {needed}")
    import torch

    datasets = MagicMock(CIFAR10=object, CIFAR100=object, STL10=object)  # it has subclasses of them
    functional = MagicMock()
    transforms = MagicMock(functional=functional)
    stand_ins = {
        "torchvision": MagicMock(datasets=datasets, transforms=transforms),
        "torchvision.datasets": datasets,
        "torchvision.transforms": transforms,
        "torchvision.transforms.functional": functional,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, stand_in in stand_ins.items():
            patch.setitem(sys.modules, name, stand_in)
        from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc
    return SimpleNamespace(
        tensor=torch.from_numpy,
        frechet=lambda x, y: metric_fid.fid_statistics_to_metric(
            *map(metric_fid.fid_features_to_statistics, (x, y)), verbose=False
        ),
        score=metric_isc.isc_features_to_metric,
        kernel=metric_kid.kid_features_to_metric,
        precision=metric_prc.prc_features_to_metric,
    )


@pytest.mark.parametrize("number", range(5))
def test_the_frechet_distance_is_that_of_torch_fidelity(fidelity, number):
    samples, reference = pair(number)
    expected = fidelity.frechet(*map(fidelity.tensor, (samples, reference)))
    found = frechet_distance(Gaussian.of(samples), Gaussian.of(reference))
    assert found == pytest.approx(expected["frechet_inception_distance"], rel=1e-6)


@pytest.mark.parametrize("number", range(5))
def test_the_class_score_is_that_of_torch_fidelity(fidelity, number):
    logits = 4 * pair(number)[0]
    expected = fidelity.score(fidelity.tensor(logits))
    score = ClassScore(shuffled_parts(len(logits)))
    for batch in np.array_split(logits, 7):
        score.add(batch)
    mean, deviation = score.score()
    assert mean == pytest.approx(expected["inception_score_mean"], rel=1e-6)
    assert deviation == pytest.approx(expected["inception_score_std"], rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("number", range(5))
def test_the_kernel_distance_is_that_of_torch_fidelity(fidelity, number, monkeypatch):
    samples, reference = pair(number)
    size = min(len(samples), len(reference), 200)
    monkeypatch.setattr(figures, "SUBSETS", 5)
    monkeypatch.setattr(figures, "SUBSET", size)
    tensors = map(fidelity.tensor, (samples, reference))
    expected = fidelity.kernel(*tensors, kid_subsets=5, kid_subset_size=size, verbose=False)
    mean, deviation = kernel_distance(samples, reference)
    assert mean == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-6)
    assert deviation == pytest.approx(expected["kernel_inception_distance_std"], rel=1e-6)


@pytest.mark.parametrize("number", range(5))
def test_precision_and_recall_are_those_of_torch_fidelity(fidelity, number):
    samples, reference = pair(number)
    expected = fidelity.precision(*map(fidelity.tensor, (samples, reference)), verbose=False)
    found = find_neighbours(samples, reference)
    assert found.precision == pytest.approx(expected["precision"], rel=1e-6)
    assert found.recall == pytest.approx(expected["recall"], rel=1e-6)


@pytest.mark.parametrize("number", range(5))
def test_the_frechet_distance_is_that_of_openais_evaluator(number):
    """The matrix root of the product; of singular ones, on the space that the features span."""
    samples, reference = pair(number)
    spanned = np.linalg.svd(np.concatenate([samples, reference]), full_matrices=False)[2]
    spanned = spanned[: np.linalg.matrix_rank(np.concatenate([samples, reference]))]
    means = [s.mean(0) for s in (samples, reference)]
    covariances = [np.atleast_2d(np.cov(s @ spanned.T, rowvar=False)) for s in (samples, reference)]
    root = sqrtm(covariances[0] @ covariances[1])
    between = means[0] - means[1]
    expected = between @ between + np.trace(sum(covariances)) - 2 * np.trace(root).real
    found = frechet_distance(Gaussian.of(samples), Gaussian.of(reference))
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("number", range(5))
def test_the_class_score_is_that_of_openais_evaluator(number):
    """The mean over consecutive parts, the last of them smaller."""
    logits = 4 * pair(number)[0]
    exponentials = np.exp(logits)
    predicted = exponentials / exponentials.sum(1, keepdims=True)
    size, scores = len(logits) // 3 + 1, []
    for begin in range(0, len(logits), size):
        part = predicted[begin : begin + size]
        divergence = part * (np.log(part) - np.log(part.mean(0)))
        scores.append(np.exp(divergence.sum(1).mean()))
    score = ClassScore(np.arange(len(logits)) // size)
    score.add(logits)
    assert score.score()[0] == pytest.approx(np.mean(scores), rel=1e-6)


def squared_distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return ((one[:, None] - other[None]) ** 2).sum(2)


@pytest.mark.parametrize("number", [2, 3])
def test_figures_of_neighbours_are_their_definitions(number, monkeypatch):
    monkeypatch.setattr(neighbours, "_ROWS", 17)  # many blocks, the last ones smaller
    monkeypatch.setattr(neighbours, "_COLUMNS", 23)
    samples, reference = pair(number)
    calls = []
    found = find_neighbours(samples, reference, lambda: calls.append(1))
    assert len(calls) == blocks_of(len(samples), len(reference))
    of_reference, of_samples = (squared_distances(s, s) for s in (reference, samples))
    between = squared_distances(samples, reference)
    third, fifth = (np.sort(of_reference, 1)[:, k] for k in (3, 5))
    assert found.precision == (between <= third).any(1).mean()
    assert found.recall == (between <= np.sort(of_samples, 1)[:, 3:4]).any(0).mean()
    assert found.density == pytest.approx((between < fifth).sum() / (5 * len(samples)))
    assert found.coverage == (between.min(0) < fifth).mean()
    assert (found.nearest_n == between.argmin(1)).all()
    assert found.distance_n == pytest.approx(np.sqrt(between.min(1)))
    assert found.reference_distance_m == pytest.approx(np.sqrt(np.sort(of_reference, 1)[:, 1]))


def test_copies_of_the_reference_are_precise_recalled_and_at_no_distance():
    reference = np.concatenate([drawn(0, 30, 20), drawn(0, 30, 20)]).astype(np.float32) + 1000
    found = find_neighbours(reference[::-1], reference)
    assert found.precision == found.recall == 1
    assert (found.distance_n == 0).all() and (found.reference_distance_m == 0).all()


@pytest.mark.parametrize(
    ("samples", "reference", "missing"),
    [
        (1, 1, {"precision", "recall", "density", "coverage"}),
        (3, 4, {"recall", "density", "coverage"}),
        (4, 3, {"precision", "density", "coverage"}),
        (4, 6, set()),
    ],
)
def test_figures_of_too_few_images_are_none(samples, reference, missing):
    found = find_neighbours(drawn(0, samples, 4), drawn(1, reference, 4))
    figures = ("precision", "recall", "density", "coverage")
    assert {name for name in figures if getattr(found, name) is None} == missing
    assert np.isfinite(found.distance_n).all()


def test_a_kernel_distance_of_too_few_images_is_refused():
    with pytest.raises(InputError, match="999 images; expected at least 1000"):
        kernel_distance(drawn(0, 999, 4), drawn(1, 1000, 4))


@no_deadline
@given(
    seed=SEEDS,
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=5),
    features=st.integers(1, 30),
)
def test_moments_of_parts_are_those_of_the_whole(seed, counts, features):
    whole = drawn(seed, sum(counts) + 2, features) + 100
    parts = np.split(whole, np.cumsum(counts))
    merged = Moments()
    for part in parts:
        moments = Moments()
        moments.add(part.astype(np.float32).astype(np.float64))
        merged = merged.merge(moments)
    whole = whole.astype(np.float32).astype(np.float64)
    found = merged.gaussian()
    assert found.mean_f == pytest.approx(whole.mean(0), rel=1e-12)
    expected = np.atleast_2d(np.cov(whole, rowvar=False))
    assert found.covariance_ff == pytest.approx(expected, abs=1e-9 * (1 + np.trace(expected)))


def test_moments_of_many_batches_are_those_of_the_whole():
    whole = drawn(0, 3000, 12).astype(np.float32)
    moments = Moments()
    for batch in np.array_split(whole, 60):
        moments.add(batch)
    found = frechet_distance(moments.gaussian(), Gaussian.of(whole))
    assert moments.count == 3000 and found < 1e-12


@no_deadline
@given(seed=SEEDS, counts=st.tuples(st.integers(2, 50), st.integers(2, 50)))
def test_saved_covariances_give_the_distance_of_the_features(seed, counts):
    one, other = drawn(seed, counts[0], 12, 2), drawn(seed + 1, counts[1], 12, 3)
    gaussians = [Gaussian.of(one), Gaussian.of(other)]
    saved = [Gaussian.of_covariance(g.mean_f, g.covariance_ff) for g in gaussians]
    assert frechet_distance(*saved) == pytest.approx(frechet_distance(*gaussians), rel=1e-6)


@no_deadline
@given(seed=SEEDS, counts=st.tuples(st.integers(6, 40), st.integers(6, 40)))
def test_neighbours_depend_neither_on_the_order_of_images_nor_on_rotations(seed, counts):
    rng = np.random.default_rng(seed)
    samples, reference = drawn(seed, counts[0], 9), drawn(seed + 1, counts[1], 9)
    turn = np.linalg.qr(rng.standard_normal((9, 9)))[0]
    found = find_neighbours(samples, reference)
    again = find_neighbours(rng.permutation(samples) @ turn, rng.permutation(reference) @ turn)
    for name in ("precision", "recall", "density", "coverage"):
        assert getattr(again, name) == pytest.approx(getattr(found, name), abs=1e-12)
    assert np.sort(again.distance_n) == pytest.approx(np.sort(found.distance_n), abs=1e-9)


@no_deadline
@given(seed=SEEDS, count=st.integers(2, 60), classes=st.integers(2, 20))
def test_a_class_score_lies_between_1_and_the_number_of_classes(seed, count, classes):
    logits = 30 * np.random.default_rng(seed).standard_normal((count, classes))
    score = ClassScore(np.zeros(count, np.intp))
    score.add(logits.astype(np.float32))
    mean, deviation = score.score()
    assert 1 - 1e-9 <= mean <= classes + 1e-9 and deviation == 0


def test_equally_many_sure_images_of_each_class_have_the_score_of_the_number_of_classes():
    score = ClassScore(np.zeros(20, np.intp))
    score.add(np.tile(1000 * np.eye(5, dtype=np.float32), (4, 1)))
    assert score.score()[0] == pytest.approx(5)
