"""Labelled images: the embedded digits and folders of image files.

Images are uint8 ``(N, Y, X, 3)`` where they are stored and float32 ``(B, 3, Y, X)`` in [-1, 1]
where a model reads them.
"""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import resources
from pathlib import Path
from threading import Lock
from typing import Protocol

import numpy as np
from PIL import Image
from var_tokenizer.common import InputError, fit_picture, quoted, read_picture, to_model_range

from var_train.data.folder_scan import ImageFiles, content_hash, counted, scan_folder, scan_tree

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


def steps_of(epochs: int, n: int, batch: int) -> int:
    """Steps of ``epochs`` over ``n`` images, of both stages: the last may begin another epoch.

    Raises InputError for a batch that is larger than the data.
    """
    if n < batch:
        raise InputError(f"batch is {batch}; expected at most {n}, the training images")
    return -(-epochs * n // batch)


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

    images_nyxc: (N, Y, X, 3) uint8. labels_n: (N,) int32. classes: names by label. files: where
    the images are from; None for those that are not from files.

    Raises InputError for arrays of another shape or dtype and for a label out of range.
    """

    images_nyxc: np.ndarray
    labels_n: np.ndarray
    classes: tuple[str, ...]
    files: ImageFiles | None = None

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

    def __init__(self, files: ImageFiles, image_size: tuple[int, int]) -> None:
        """image_size: (rows, columns). Raises InputError where a class has no readable image."""
        self.files = files
        self.labels_n, self.classes = files.labels_n, files.classes
        self.image_size = image_size
        self._unreadable: dict[int, str] = {}
        self._lock = Lock()
        self._pool = ThreadPoolExecutor(thread_name_prefix="decode")
        # Better to learn now than hours into a run that a class cannot be read at all.
        firsts = np.searchsorted(files.labels_n, np.arange(len(files.classes), dtype=np.int32))
        work = self._pool.map(self._read, firsts.tolist())
        _finish(work, len(firsts), f"checking {files.folder}")

    def __len__(self) -> int:
        return len(self.files)

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

    def sources(self, index: int) -> list[int]:
        """The files that decide on the image at ``index``, which was read before.

        Its own, and where that is unreadable those after it, up to the one that stands in.
        """
        sources = []
        for candidate in _candidates(self.files, index):
            sources.append(candidate)
            if candidate not in self._unreadable:
                break
        return sources

    def _read(self, index: int) -> np.ndarray:
        """The image at ``index``, or the next readable one of its class, cyclically."""
        for candidate in _candidates(self.files, index):
            if candidate in self._unreadable:
                continue
            try:
                return read_image(self.files.path(candidate), self.image_size)
            except InputError as error:
                self._note_unreadable(candidate, str(error))
        raise _no_readable_image(self.files, index, self._unreadable[index])

    def _note_unreadable(self, index: int, message: str) -> None:
        with self._lock:
            if index in self._unreadable:
                return
            self._unreadable[index] = message
            messages = [text for _, text in sorted(self._unreadable.items())]
        log.warning("skipped an unreadable image, the next of its class stands in: %s", message)
        _check_tolerable(self.files.folder, messages, len(self))


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


def load_image_tree(
    root: str | Path,
    image_size: tuple[int, int],
    *,
    val_fraction: float | None = None,
    memory_limit: int = 2**30,
) -> tuple["ImageSet | ImageFolder", "ImageSet | ImageFolder"]:
    """The training and validation images of a folder; ``scan_tree`` says which these are.

    ``read_image`` says how an image becomes ``image_size`` (rows, columns). A split that takes at
    most ``memory_limit`` bytes is decoded now, once; a larger one batch by batch. Either way an
    unreadable image is replaced by the next readable one of its class, with a warning, so that
    an epoch has as many images, and the same ones, whatever fits into memory.

    Raises InputError as ``scan_tree`` does, where a class has no readable image, and where the
    unreadable ones are more than 10 and more than 1 % of a split.
    """
    train, val = scan_tree(Path(root), val_fraction)
    return (
        _load_split(train, image_size, memory_limit),
        _load_split(val, image_size, memory_limit),
    )


def load_folder(folder: str | Path, image_size: tuple[int, int]) -> "ImageFolder":
    """All images below ``folder``, at any depth, as images of one class.

    They are decoded when a batch asks for them. Raises InputError where there is none, and where
    too many are unreadable (see ``load_image_tree``).
    """
    return ImageFolder(scan_folder(Path(folder)), image_size)


def read_image(path: Path, image_size: tuple[int, int]) -> np.ndarray:
    """An image file as uint8 (rows, columns, 3) of ``image_size`` (rows, columns).

    It is read and fitted as ``read_picture`` and ``fit_picture`` say, and raises as those do.
    """
    return np.asarray(fit_picture(read_picture(path), image_size))


def _load_split(
    files: ImageFiles, image_size: tuple[int, int], memory_limit: int
) -> "ImageSet | ImageFolder":
    if len(files) * image_size[0] * image_size[1] * 3 > memory_limit:
        return ImageFolder(files, image_size)
    return _decode_all(files, image_size)


def _decode_all(files: ImageFiles, image_size: tuple[int, int]) -> ImageSet:
    images_nyxc = np.empty((len(files), *image_size, 3), np.uint8)
    hashes_n = np.zeros(len(files), np.uint64)
    unreadable: dict[int, str] = {}

    def decode(index: int) -> None:
        path = files.path(index)
        try:
            hashes_n[index] = content_hash(path)
            images_nyxc[index] = read_image(path, image_size)
        except InputError as error:
            unreadable[index] = str(error)

    with ThreadPoolExecutor() as pool:
        _finish(pool.map(decode, range(len(files))), len(files), f"reading {files.folder}")
    for index in sorted(unreadable):
        stand_in = next((i for i in _candidates(files, index) if i not in unreadable), None)
        if stand_in is None:
            raise _no_readable_image(files, index, unreadable[index])
        images_nyxc[index] = images_nyxc[stand_in]
    if unreadable:
        messages = [text for _, text in sorted(unreadable.items())]
        _check_tolerable(files.folder, messages, len(files))
        log.warning(
            "%s: skipped %d unreadable image(s), for which the next of their class stand in: %s",
            *(quoted(files.folder), len(messages), _first(messages)),
        )
    files = replace(files, hashes_n=hashes_n)
    return ImageSet(images_nyxc, files.labels_n, files.classes, files)


def _candidates(files: ImageFiles, index: int) -> Iterator[int]:
    """The image at ``index`` and then the next ones of its class, cyclically."""
    label = files.labels_n[index]
    first, end = np.searchsorted(files.labels_n, np.array([label, label + 1], np.int32)).tolist()
    yield from range(index, end)
    yield from range(first, index)


def _no_readable_image(files: ImageFiles, index: int, first: str) -> InputError:
    name = files.classes[files.labels_n[index]]
    folder = files.folder / name if len(files.classes) > 1 else files.folder
    return InputError(f"{quoted(folder)}: no readable image; expected at least one ({first})")


def _check_tolerable(folder: Path, messages: list[str], total: int) -> None:
    """Raises InputError with the list where more than 10 and more than 1 % are unreadable."""
    if len(messages) > max(10, total / 100):
        raise InputError(
            f"{quoted(folder)}: {len(messages)} of {total} images are unreadable; "
            f"expected at most 10 or 1 %, whichever is more: {'; '.join(messages)}"
        )


def _first(messages: list[str], count: int = 3) -> str:
    return ", ".join(messages[:count]) + (", ..." if messages[count:] else "")


def _finish(work: Iterator[object], total: int, description: str) -> None:
    """Runs ``work`` on ``total`` images to its end, and shows how far it is."""
    with counted(total, description, "images") as advance:
        for _ in work:
            advance()
