"""Labelled images: the embedded digits and folders of JPEG and PNG files.

Images are uint8 ``(N, Y, X, 3)`` where they are stored and float32 ``(B, 3, Y, X)`` in [-1, 1]
where a model reads them.
"""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from threading import Lock
from typing import Protocol

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track
from var_tokenizer import InputError, fit_picture, read_picture, to_model_range

SUFFIXES = (".jpg", ".jpeg", ".png")
LAYOUT = "DIR/train/CLASS/*.jpg|jpeg|png and DIR/val/CLASS/*.jpg|jpeg|png"

log = logging.getLogger(__name__)


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """(n,) int64: the order of ``n`` images in an epoch, a permutation of 0..n-1.

    It depends on its arguments alone (seed and epoch of 0 or more), so a resumed run sees the
    images that an uninterrupted one would have seen.
    """
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(n)


@lru_cache(maxsize=2)
def _order(n: int, seed: int, epoch: int) -> np.ndarray:
    return epoch_order(n, seed, epoch)


def step_indices(n: int, batch: int, seed: int, step: int) -> np.ndarray:
    """(batch,) int64: which of ``n`` images a step takes, over all workers together.

    Epochs follow one another without a gap: each has every image once, and a batch may hold the
    end of one and the beginning of the next.
    """
    positions = np.arange(step * batch, (step + 1) * batch)
    epochs = positions // n
    return np.concatenate(
        [_order(n, seed, int(e))[positions[epochs == e] % n] for e in np.unique(epochs)]
    )


class ImageSource(Protocol):
    """N labelled images of one size, from memory or from files."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; a label is an index into them."""

    @property
    def labels_n(self) -> np.ndarray:
        """(N,) int32."""

    def __len__(self) -> int:
        """N."""

    def batch(
        self, indices: Sequence[int] | np.ndarray, flip: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Images float32 (B, 3, Y, X) in [-1, 1] and labels int32 (B,) at ``indices`` (B,).

        flip: (B,) bool, True where an image is to be mirrored left to right.
        """


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images in memory: an ``ImageSource``.

    images_nyxc: (N, Y, X, 3) uint8. labels_n: (N,) int32. classes: names by label.

    Raises InputError for arrays of another shape or dtype and for a label out of range.
    """

    images_nyxc: np.ndarray
    labels_n: np.ndarray
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        shape, dtype = self.images_nyxc.shape, self.images_nyxc.dtype
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3:
            raise InputError(f"images_nyxc is {dtype} {shape}; expected uint8 (N, Y, X, 3)")
        if self.labels_n.dtype != np.int32 or self.labels_n.shape != shape[:1]:
            raise InputError(
                f"labels_n is {self.labels_n.dtype} {self.labels_n.shape}; "
                f"expected int32 ({shape[0]},), one label an image"
            )
        outside = self.labels_n[(self.labels_n < 0) | (self.labels_n >= len(self.classes))]
        if outside.size:
            raise InputError(
                f"labels_n holds {outside[0]}; expected 0 to {len(self.classes) - 1}, "
                f"one of {len(self.classes)} classes"
            )

    def __len__(self) -> int:
        return len(self.labels_n)

    def batch(
        self, indices: Sequence[int] | np.ndarray, flip: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """See ``ImageSource.batch``."""
        indices = np.asarray(indices, np.int64)
        return _prepared(self.images_nyxc[indices], flip), self.labels_n[indices]


class ImageFolder:
    """Images that are decoded when a batch asks for them: an ``ImageSource``.

    An unreadable image is replaced by the next readable one of its class, so that a batch keeps
    its size and stays the same in a repeated run; each is named once in a warning. Any number
    of threads may call ``batch``.
    """

    def __init__(
        self,
        folder: Path,
        paths: Sequence[Path],
        labels_n: np.ndarray,
        classes: tuple[str, ...],
        image_size: tuple[int, int],
    ) -> None:
        """folder: for messages. paths, labels_n: N each, class after class, every class present.
        image_size: (rows, columns).

        Raises InputError where a class has no readable image.
        """
        self.folder = folder
        self.paths = tuple(paths)
        self.labels_n = labels_n
        self.classes = classes
        self.image_size = image_size
        self._unreadable: dict[int, str] = {}
        self._lock = Lock()
        self._pool = ThreadPoolExecutor(thread_name_prefix="decode")
        # Better to learn now than hours into a run that a class cannot be read at all.
        firsts = [int(np.argmax(labels_n == label)) for label in range(len(classes))]
        _finish(self._pool.map(self._read, firsts), len(firsts), f"checking {folder}")

    def __len__(self) -> int:
        return len(self.paths)

    def batch(
        self, indices: Sequence[int] | np.ndarray, flip: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """See ``ImageSource.batch``.

        Raises InputError once more images proved unreadable than ``load_image_tree`` tolerates.
        """
        indices = np.asarray(indices, np.int64)
        images_byxc = np.empty((len(indices), *self.image_size, 3), np.uint8)
        for row, image_yxc in enumerate(self._pool.map(self._read, indices.tolist())):
            images_byxc[row] = image_yxc
        return _prepared(images_byxc, flip), self.labels_n[indices]

    def _read(self, index: int) -> np.ndarray:
        """The image at ``index``, or the next readable one of its class, cyclically."""
        first, end = np.searchsorted(self.labels_n, self.labels_n[index] + np.arange(2)).tolist()
        for candidate in (*range(index, end), *range(first, index)):
            if candidate in self._unreadable:
                continue
            try:
                return read_image(self.paths[candidate], self.image_size)
            except InputError as error:
                self._note_unreadable(candidate, str(error))
        raise _no_readable_image(self.paths[index].parent, self._unreadable[index])

    def _note_unreadable(self, index: int, message: str) -> None:
        with self._lock:
            if index in self._unreadable:
                return
            self._unreadable[index] = message
            messages = [text for _, text in sorted(self._unreadable.items())]
        log.warning("skipped an unreadable image: %s", message)
        _check_tolerable(self.folder, messages, len(self))


def _prepared(images_byxc: np.ndarray, flip: np.ndarray | None) -> np.ndarray:
    """A batch in model range, mirrored where ``flip`` is True; overwrites ``images_byxc``."""
    if flip is not None:
        images_byxc[flip] = images_byxc[flip, :, ::-1]
    return to_model_range(images_byxc)


# digits.npz is the UCI "Optical Recognition of Handwritten Digits" test set (E. Alpaydin,
# C. Kaynak, 1998, https://doi.org/10.24432/C50P49, CC BY 4.0) as scikit-learn ships it. It was
# made in this folder by
#
#     digits = sklearn.datasets.load_digits()
#     every = np.arange(1797)
#     train, _ = sklearn.model_selection.train_test_split(
#         every, test_size=0.2, stratify=digits.target, random_state=0)
#     np.savez_compressed("digits.npz", images_nyx=digits.images.astype(np.uint8),
#         labels_n=digits.target.astype(np.uint8), in_train_n=np.isin(every, train))
def load_digits_split() -> tuple[ImageSet, ImageSet]:
    """The embedded 8x8 handwritten digits as 32x32 images: 1,437 to train on, 360 to test.

    White ink on black, three equal channels; the split is fixed, with all ten classes in
    proportion.
    """
    with (resources.files("var_train") / "digits.npz").open("rb") as file:
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


def load_image_tree(
    root: str | Path, image_size: tuple[int, int], *, memory_limit: int = 2**30
) -> tuple[ImageSource, ImageSource]:
    """The training and validation images of ``DIR/train/CLASS/*`` and ``DIR/val/CLASS/*``.

    Classes are the sorted folder names of train; files are ``.jpg``, ``.jpeg`` and ``.png`` in
    sorted order, names that start with a dot excepted. ``read_image`` says how an image becomes
    ``image_size`` (rows, columns). A split that takes at most ``memory_limit`` bytes is decoded
    now, once; a larger one batch by batch.

    Unreadable images are skipped with a warning. Raises InputError where they are more than 10
    and more than 1 % of a split; where a folder is missing, empty or without classes; where a
    class has no readable image; and where train and val differ in their classes.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; expected {LAYOUT}")
    if not _names(root):
        raise InputError(f"{root}: this folder is empty; expected {LAYOUT}")
    train_folder, val_folder = root / "train", root / "val"
    classes, val_classes = _class_names(train_folder), _class_names(val_folder)
    for folder, missing in (
        (train_folder, sorted(set(val_classes) - set(classes))),
        (val_folder, sorted(set(classes) - set(val_classes))),
    ):
        if missing:
            raise InputError(
                f"{folder}: no folder for {len(missing)} class(es) of the other split: "
                f"{_first(missing)}; expected the same classes in train and val"
            )
    train, val = (
        _load_split(folder, classes, image_size, memory_limit)
        for folder in (train_folder, val_folder)
    )
    return train, val


def load_folder(folder: str | Path, image_size: tuple[int, int]) -> ImageSource:
    """All JPEG and PNG files below ``folder``, at any depth, as images of one class.

    They are decoded when a batch asks for them. Raises InputError where there is none, and where
    too many are unreadable (see ``load_image_tree``).
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected one of images")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise InputError(f"{folder}: no image at any depth; expected {', '.join(SUFFIXES)} files")
    labels_n = np.zeros(len(paths), np.int32)
    return ImageFolder(folder, paths, labels_n, (folder.name,), image_size)


def read_image(path: Path, image_size: tuple[int, int]) -> np.ndarray:
    """An image file as uint8 (rows, columns, 3) of ``image_size`` (rows, columns).

    It is read and fitted as ``read_picture`` and ``fit_picture`` say, and raises as those do.
    """
    return np.asarray(fit_picture(read_picture(path), image_size))


def _load_split(
    folder: Path, classes: tuple[str, ...], image_size: tuple[int, int], memory_limit: int
) -> ImageSource:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        names = [n for n in _names(folder / name) if n.lower().endswith(SUFFIXES)]
        if not names:
            raise InputError(f"{folder / name}: no image; expected {', '.join(SUFFIXES)} files")
        paths += [folder / name / n for n in names]
        labels += [label] * len(names)
    labels_n = np.array(labels, np.int32)
    if len(paths) * image_size[0] * image_size[1] * 3 > memory_limit:
        return ImageFolder(folder, paths, labels_n, classes, image_size)
    return _decode_all(folder, paths, labels_n, classes, image_size)


def _decode_all(
    folder: Path,
    paths: list[Path],
    labels_n: np.ndarray,
    classes: tuple[str, ...],
    image_size: tuple[int, int],
) -> ImageSet:
    images_nyxc = np.empty((len(paths), *image_size, 3), np.uint8)
    unreadable: dict[int, str] = {}

    def decode(index: int) -> None:
        try:
            images_nyxc[index] = read_image(paths[index], image_size)
        except InputError as error:
            unreadable[index] = str(error)

    with ThreadPoolExecutor() as pool:
        _finish(pool.map(decode, range(len(paths))), len(paths), f"reading {folder}")
    if not unreadable:
        return ImageSet(images_nyxc, labels_n, classes)
    bad = sorted(unreadable)
    messages = [unreadable[index] for index in bad]
    left_n = np.delete(labels_n, bad)
    for label, name in enumerate(classes):
        if label not in left_n:
            first = next(unreadable[index] for index in bad if labels_n[index] == label)
            raise _no_readable_image(folder / name, first)
    _check_tolerable(folder, messages, len(paths))
    log.warning("%s: skipped %d unreadable image(s): %s", folder, len(bad), _first(messages))
    return ImageSet(np.delete(images_nyxc, bad, axis=0), left_n, classes)


def _no_readable_image(class_folder: Path, first: str) -> InputError:
    return InputError(f"{class_folder}: no readable image; expected at least one ({first})")


def _check_tolerable(folder: Path, messages: list[str], total: int) -> None:
    """Raises InputError with the list where more than 10 and more than 1 % are unreadable."""
    if len(messages) > max(10, total / 100):
        raise InputError(
            f"{folder}: {len(messages)} of {total} images are unreadable; "
            "expected at most 10 or 1 %, whichever is more:\n  " + "\n  ".join(messages)
        )


def _class_names(split: Path) -> tuple[str, ...]:
    if not split.is_dir():
        raise InputError(f"{split}: no such folder; expected {LAYOUT}")
    classes = tuple(name for name in _names(split) if (split / name).is_dir())
    if not classes:
        raise InputError(f"{split}: no class folders; expected {LAYOUT}")
    return classes


def _names(folder: Path) -> list[str]:
    """Names of a folder's entries, sorted, without hidden ones."""
    try:
        return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder}: cannot list this folder: {error.strerror}") from error


def _first(items: list[str], count: int = 3) -> str:
    return ", ".join(items[:count]) + (", ..." if len(items) > count else "")


def _finish(work: Iterator[object], total: int, description: str) -> None:
    """Runs ``work`` of ``total`` steps to its end under a progress bar, which then disappears."""
    console = Console(stderr=True)
    hidden = not console.is_terminal
    for _ in track(work, description, total, console=console, transient=True, disable=hidden):
        pass
