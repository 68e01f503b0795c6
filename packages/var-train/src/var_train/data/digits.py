"""The handwritten digits that come with the package.

digits.npz is the UCI "Optical Recognition of Handwritten Digits" test set (E. Alpaydin,
C. Kaynak, 1998, https://doi.org/10.24432/C50P49, CC BY 4.0) as scikit-learn ships it. This made it:

    digits = sklearn.datasets.load_digits()
    every = np.arange(1797)
    train, _ = sklearn.model_selection.train_test_split(
        every, test_size=0.2, stratify=digits.target, random_state=0)
    np.savez_compressed("digits.npz", images_nyx=digits.images.astype(np.uint8),
        labels_n=digits.target.astype(np.uint8), in_train_n=np.isin(every, train))
"""

from importlib import resources

import numpy as np
from PIL import Image

from var_train.data.image_sources import ImageSet


def load_digits_split() -> tuple[ImageSet, ImageSet]:
    """The embedded 8x8 digits as 32x32 images: 1,437 to train on, 360 to validate on.

    White ink on black, three equal channels; the split is fixed, with all ten classes in
    proportion.
    """
    with (resources.files("var_train.data") / "digits.npz").open("rb") as file:
        arrays = np.load(file)
        images_nyx, labels_n, in_train_n = (
            arrays[name] for name in ("images_nyx", "labels_n", "in_train_n")
        )
    pixels_nyx = np.rint(images_nyx * (255 / 16)).astype(np.uint8)  # ink is 0..16
    # Bicubic keeps the strokes smooth; Lanczos leaves ripples in the black around them.
    large_nyx = np.stack(
        [
            np.asarray(Image.fromarray(image_yx).resize((32, 32), Image.Resampling.BICUBIC))
            for image_yx in pixels_nyx
        ]
    )
    images_nyxc = np.repeat(large_nyx[..., None], 3, axis=3)
    labels_n = labels_n.astype(np.int32)
    classes = tuple(str(digit) for digit in range(10))
    return (
        ImageSet(images_nyxc[in_train_n], labels_n[in_train_n], classes),
        ImageSet(images_nyxc[~in_train_n], labels_n[~in_train_n], classes),
    )
