"""The digits that come with the package."""

from importlib import resources

import numpy as np
from sklearn.datasets import load_digits
from var_train.data.digits import load_digits_split


def test_the_embedded_digits_are_scikit_learns_split_in_two():
    train, val = load_digits_split()
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


def test_every_digit_is_in_both_parts_in_proportion():
    train, val = load_digits_split()
    share = np.bincount(val.labels_n) / (np.bincount(val.labels_n) + np.bincount(train.labels_n))
    assert share.min() > 0.19 and share.max() < 0.21
