"""The digits that come with the package, and how real those look that a run makes."""

from importlib import resources

import numpy as np
import pytest
from sklearn.datasets import load_digits
from var_tokenizer.common import InputError
from var_train.data.digits import load_digits_split
from var_train.data.image_sources import ImageSet
from var_train.reports.digit_metrics import (
    DigitJudge,
    DigitReport,
    distinct,
    nearest_train_distance,
)
from var_transformer import generate, load_pretrained


@pytest.fixture(scope="module")
def split():
    return load_digits_split()


def test_the_embedded_digits_are_scikit_learns_split_in_two(split):
    train, val = split
    assert (len(train), len(val)) == (1437, 360)
    assert train.classes == val.classes == tuple("0123456789")
    both_nyxc = np.concatenate([train.images_nyxc, val.images_nyxc])
    labels_n = np.concatenate([train.labels_n, val.labels_n])
    assert both_nyxc.shape == (1797, 32, 32, 3)
    assert (both_nyxc == both_nyxc[..., :1]).all()

    with (resources.files("var_train.data") / "digits.npz").open("rb") as file:
        shipped = dict(np.load(file))
    digits, in_train_n = load_digits(), shipped["in_train_n"]
    np.testing.assert_array_equal(shipped["images_nyx"], digits.images)
    np.testing.assert_array_equal(
        labels_n, np.r_[digits.target[in_train_n], digits.target[~in_train_n]]
    )
    originals_nyx = np.concatenate([digits.images[in_train_n], digits.images[~in_train_n]])
    # Enlarging smooths, which costs contrast but keeps the shape: two digits of a class
    # typically correlate by 0.7, the best lookalike of one by 0.95.
    averaged_nyx = both_nyxc[..., 0].reshape(-1, 8, 4, 8, 4).mean(axis=(2, 4))
    for averaged_yx, original_yx in zip(averaged_nyx, originals_nyx, strict=True):
        assert np.corrcoef(averaged_yx.ravel(), original_yx.ravel())[0, 1] > 0.97


def test_every_digit_is_in_both_parts_in_proportion(split):
    train, val = split
    share = np.bincount(val.labels_n) / (np.bincount(val.labels_n) + np.bincount(train.labels_n))
    assert share.min() > 0.19 and share.max() < 0.21


@pytest.fixture(scope="module")
def judge(split):
    return DigitJudge(split[0])


def channels_first(images):
    return images.images_nyxc.transpose(0, 3, 1, 2)


def plain_set(values, labels):
    """A set of 8x8 images, one of a single grey for each value in 0..255."""
    images = np.ones((1, 8, 8, 3)) * np.reshape(values, (-1, 1, 1, 1))
    return ImageSet(images.astype(np.uint8), np.array(labels, np.int32), ("a", "b"))


def test_the_judge_knows_real_digits_that_it_has_not_seen(split, judge):
    assert judge.accuracy(channels_first(split[1]), split[1].labels_n) >= 0.97


def test_the_judge_takes_bytes_and_floats_alike(split, judge):
    images, labels = channels_first(split[1]), split[1].labels_n
    as_float32 = images.astype(np.float32) / 255
    assert judge.accuracy(images, labels) == judge.accuracy(as_float32, labels)


def test_the_judge_rejects_wrong_labels_and_noise(split, judge):
    labels = split[1].labels_n
    assert judge.accuracy(channels_first(split[1]), (labels + 1) % 10) < 0.02
    noise = np.random.default_rng(0).random((len(labels), 3, 32, 32))
    assert judge.accuracy(noise, labels) < 0.2


def test_distinct_is_about_one_for_real_digits(split):
    train, test = split
    assert distinct(channels_first(test), test.labels_n, train) == pytest.approx(1, abs=0.05)
    assert distinct(channels_first(train), train.labels_n, train) == 1


def test_distinct_is_zero_for_one_image_again_and_again(split):
    one_each = np.stack([channels_first(split[0])[split[0].labels_n == k][0] for k in range(10)])
    ratio = distinct(one_each.repeat(5, axis=0), np.arange(10).repeat(5), split[0])
    assert ratio == pytest.approx(0, abs=1e-6)


def test_distinct_is_the_mean_over_classes_of_the_ratio_of_distances():
    real = plain_set([0, 100, 0, 200], [0, 0, 1, 1])
    made = plain_set([0, 50, 100, 0, 50], [0, 0, 0, 1, 1])  # pairs of class a: 50, 50, 100
    ratio = distinct(channels_first(made), made.labels_n, real)
    assert ratio == pytest.approx((2 / 3 + 1 / 4) / 2)


def test_a_class_of_one_image_has_no_distinctness(split):
    images = channels_first(split[0])[:1]
    with pytest.raises(InputError, match="label 0 has 1 image"):
        distinct(images, np.array([0]), split[0])


def test_copies_of_training_images_lie_at_distance_zero(split):
    train, test = split
    distances = nearest_train_distance(channels_first(train)[:20], train, test)
    assert max(distances[name] for name in ("mean", "median", "min")) < 1e-4
    assert min(distances[name] for name in ("real_mean", "real_median", "real_min")) > 1


def test_nearest_distances_are_euclidean_over_all_values():
    train, test = plain_set([0, 255], [0, 1]), plain_set([51], [0])
    made = np.ones((3, 3, 8, 8)) * np.reshape([0.1, 0.5, 0.8], (3, 1, 1, 1))
    root = np.sqrt(3 * 8 * 8)
    assert nearest_train_distance(made, train, test) == pytest.approx(
        {
            "mean": 0.8 / 3 * root,
            "median": 0.2 * root,
            "min": 0.1 * root,
            "real_mean": 0.2 * root,
            "real_median": 0.2 * root,
            "real_min": 0.2 * root,
        }
    )


@pytest.mark.parametrize(
    ("images", "named"),
    [
        (np.full((1, 3, 32, 32), -1.0), "range from -1 to -1"),
        (np.full((1, 3, 32, 32), np.nan), "range from nan to nan"),
        (np.zeros((1, 32, 32, 3)), r"shape \(1, 32, 32, 3\)"),
        (np.zeros((0, 3, 32, 32)), r"shape \(0, 3, 32, 32\)"),
        (np.zeros((1, 3, 30, 32)), "30x32; expected sides that 8 divides"),
    ],
)
def test_images_of_another_range_or_shape_are_refused(judge, images, named):
    with pytest.raises(InputError, match=named):
        judge.accuracy(images, np.zeros(len(images)))


def test_a_report_of_one_image_a_class_says_nothing_of_distinctness(split):
    train, test = split
    reals = channels_first(test)
    ones = np.stack([reals[test.labels_n == k][0] for k in range(10)]) / 255
    figures = report(ones, np.arange(10), reals / 127.5 - 1, train, test)
    assert figures["distinct"] is None and figures["generated_accuracy"] > 0.8


def report(generated, labels_n, reconstructions, train, test):
    """The figures of images that came in batches and classes."""
    digits = DigitReport(train, test)
    for rows in np.array_split(np.arange(len(test)), 7):
        digits.add_reconstructions(reconstructions[rows], test.labels_n[rows])
    for label in np.unique(labels_n):
        digits.add_class(generated[labels_n == label], label)
    return digits.figures()


def test_a_report_of_batches_and_classes_is_that_of_all_images(split):
    train, test = split
    order = np.argsort(test.labels_n, kind="stable")
    made, labels = channels_first(test)[order] * 0.8 / 255, test.labels_n[order]
    reconstructions = channels_first(test) / 127.5 - 1
    figures = report(made, labels, reconstructions, train, test)
    judge = DigitJudge(train)
    assert figures["judge_accuracy"] == judge.accuracy(channels_first(test), test.labels_n)
    assert figures["reconstruction_accuracy"] == figures["judge_accuracy"]
    assert figures["generated_accuracy"] == judge.accuracy(made, labels)
    assert figures["distinct"] == pytest.approx(distinct(made, labels, train))
    nearest = nearest_train_distance(made, train, test)
    assert figures["nearest_train_distance"] == pytest.approx(nearest)


def test_the_models_in_the_box_draw_digits_that_are_recognized_and_varied(split):
    train, val = split
    model, tokenizer = load_pretrained()
    labels_n = np.repeat(np.arange(10, dtype=np.int32), 20)
    images = generate(model, tokenizer, labels_n, seed=1).images
    assert DigitJudge(train).accuracy(images, labels_n) >= 0.95
    assert distinct(images, labels_n, val) >= 0.5
