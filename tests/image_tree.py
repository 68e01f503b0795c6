"""Trees of random images, as var-train reads them."""

import tarfile
from collections.abc import Sequence
from io import BytesIO
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


def write_tar(path: Path, members: Sequence[tuple[str, bytes]], **options: int) -> Path:
    """A tar file of (name, content) pairs; options as of ``tarfile.open``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, BytesIO(content))
    return path


def pack_shards(root: Path, out: Path, images: int = 5) -> Path:
    """OUT/{train,val}-{0000,...}.tar of a tree: ``images`` in each, labels beside them.

    Members are CLASS/NAME and CLASS/NAME.cls, in the order of the tree; OUT/classes.txt has the
    names of the classes. Returns ``out``.
    """
    classes = sorted(path.name for path in (root / "train").iterdir())
    for split in ("train", "val"):
        paths = sorted((root / split).rglob("*.*"), key=lambda path: str(path.relative_to(root)))
        for begin in range(0, len(paths), images):
            members = []
            for path in paths[begin : begin + images]:
                name = str(path.relative_to(root / split))
                label = str(classes.index(path.parent.name)).encode()
                members += [(name, path.read_bytes()), (f"{name.partition('.')[0]}.cls", label)]
            write_tar(out / f"{split}-{begin // images:04d}.tar", members)
    (out / "classes.txt").write_text("".join(f"{name}\n" for name in classes))
    return out
