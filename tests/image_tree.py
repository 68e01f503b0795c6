"""Trees of random images, as var-train reads them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image


def random_image(seed: int, size: tuple[int, int]) -> np.ndarray:
    """uint8 (rows, columns, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def write_image_tree(
    root: Path,
    size: tuple[int, int] = (8, 8),
    classes: Sequence[str] = ("cat", "dog"),
    train: int = 6,
    val: int = 6,
    suffix: str = "png",
) -> Path:
    """ROOT/{train,val}/CLASS/{0,1,...}.SUFFIX; the n-th file of all is ``random_image(n, size)``.

    train, val: images of each class. Returns ``root``.
    """
    seed = 0
    for split, count in (("train", train), ("val", val)):
        for name in classes:
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(random_image(seed, size)).save(folder / f"{i}.{suffix}")
                seed += 1
    return root
