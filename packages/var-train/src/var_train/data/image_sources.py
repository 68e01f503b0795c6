"""Labelled images, from memory or read from a folder when a batch asks for them.

Images are pixels here, uint8 (N, Y, X, 3). The caller converts them to the range of a model:
``to_floats`` for passes that read channels last, ``to_model_range`` for ``Tokenizer.encode``.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Protocol

import numpy as np
from var_tokenizer.common import InputError, fit_picture, processor_count, quoted, read_picture

from var_train.data.crops import Place, PlaceOf, crops_of
from var_train.data.unreadable_images import UnreadableImages
from var_train.listing.find_images import find_all, find_images
from var_train.listing.image_files import ImageFiles, content_hash
from var_train.listing.source_errors import refuse_lost
from var_train.reports.progress_bars import counted

Indices = Sequence[int] | np.ndarray
Batch = tuple[np.ndarray, np.ndarray]


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
        self, indices: Indices, flip: np.ndarray | None = None, place_of: PlaceOf | None = None
    ) -> Batch:
        """Pixels uint8 (B, Y, X, 3) and labels int32 (B,) at ``indices`` (B,).

        flip: (B,) bool, True for an image to mirror left to right. place_of: where to crop each
        image, if the source crops; None for the centre.
        """


@dataclass(frozen=True, eq=False)
class ReadImages:
    """A batch that was read ahead of the step that takes it; see ``ImageFolder.read``."""

    pixels_byxc: np.ndarray
    """(B, Y, X, 3) uint8; of several crops, those at the first place, at the second, and so on."""
    labels_b: np.ndarray
    """(B,) int32."""
    take: Callable[[], None] = lambda: None
    """To be called where a step takes the batch, and before its pixels are used."""


def read_images(
    source: ImageSource,
    indices: Indices,
    flip: np.ndarray | None = None,
    place_of: PlaceOf | None = None,
) -> ReadImages:
    """What ``source.batch`` gives, by its method ``read`` if it has one (``ImageFolder.read``)."""
    if hasattr(source, "read"):
        return source.read(indices, flip, place_of)
    return ReadImages(*source.batch(indices, flip, place_of))


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images in memory: an ``ImageSource``.

    images_nyxc: (N, Y, X, 3) uint8. labels_n: (N,) int32. classes: names by label. files: where
    the images come from; None if not from files.

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
                f"expected int32 ({shape[0]},), one label per image"
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
        self, indices: Indices, flip: np.ndarray | None = None, place_of: PlaceOf | None = None
    ) -> Batch:
        """See ``ImageSource.batch``."""
        indices = np.asarray(indices, np.int64)
        return _mirrored(self.images_nyxc[indices], flip), self.labels_n[indices]


def _mirrored(pixels_byxc: np.ndarray, flip: np.ndarray | None) -> np.ndarray:
    """The pixels, mirrored left to right in place where ``flip`` (B,) is True."""
    if flip is not None:
        pixels_byxc[flip] = pixels_byxc[flip, :, ::-1]
    return pixels_byxc


class ImageFolder:
    """Images that are decoded when a batch asks for them: an ``ImageSource``.

    ``UnreadableImages`` chooses substitutes for unreadable ones. Threads may share it.
    """

    def __init__(self, files: ImageFiles, image_size: tuple[int, int], crops: bool = False) -> None:
        """image_size: (rows, columns). crops: see ``read_image``.

        Raises InputError if a class has no readable image.
        """
        self.files = files
        self.labels_n, self.classes = files.labels_n, files.classes
        self.image_size, self._crops = image_size, crops
        self.hashes_n: np.ndarray | None = None
        """If set, (N,) uint64: the contents that ``batch`` has read and expects again, or 0."""
        self._unreadable = UnreadableImages(files)
        self.bytes_each = 23 * math.prod(image_size)
        """Of an image that is ready for a step: as read, as floats, and draws of augmentation."""
        self.processor_seconds = 0.0
        """What all reading took so far, over all threads."""
        self._lock = Lock()
        threads = min(32, processor_count() + 4)  # some wait for the disk
        self._pool = ThreadPoolExecutor(threads, "decode")
        # better to find a class that cannot be read at all now than hours into a run
        firsts = np.searchsorted(files.labels_n, np.arange(len(files.classes), dtype=np.int32))
        work = map(self._note, firsts.tolist(), self._pool.map(self._find, firsts.tolist()))
        _finish(work, len(firsts), f"checking {files.folder}")

    def __len__(self) -> int:
        return len(self.files)

    def batch(
        self, indices: Indices, flip: np.ndarray | None = None, place_of: PlaceOf | None = None
    ) -> Batch:
        """See ``ImageSource.batch``.

        Raises InputError once too many images have proved unreadable (``load_image_tree``), and for
        an image whose content is not that of ``hashes_n``.
        """
        images = self.read(indices, flip, place_of)
        images.take()
        return images.pixels_byxc, images.labels_b

    def read(
        self, indices: Indices, flip: np.ndarray | None = None, place_of: PlaceOf | None = None
    ) -> ReadImages:
        """Reads what ``batch`` gives. Any thread may call it, ahead of the step that needs it.

        It changes nothing here: ``take`` of the result warns of unreadable images, compares and
        notes contents, and raises what ``batch`` would have. So a batch that no step took leaves no
        trace, and the order in which batches are read does not matter.
        """
        return self.read_crops(indices, [place_of], flip)

    def read_crops(
        self,
        indices: Indices,
        places_of: Sequence[PlaceOf | None],
        flip: np.ndarray | None = None,
    ) -> ReadImages:
        """As ``read``, but each image at several places, for which it is decoded once."""
        indices = np.asarray(indices, np.int64)
        size = (len(places_of), len(indices), *self.image_size, 3)
        pixels_cbyxc = np.empty(size, np.uint8)

        def read(row: int) -> _Found:
            index = int(indices[row])
            begin = time.thread_time()
            found = self._find(index, [of and of(index) for of in places_of])
            mirrored = flip is not None and flip[row]
            for n, pixels_yxc in enumerate(found.crops):
                pixels_cbyxc[n, row] = pixels_yxc[:, ::-1] if mirrored else pixels_yxc
            return replace(found, crops=[], seconds=time.thread_time() - begin)

        rows = list(self._pool.map(read, range(len(indices))))
        with self._lock:
            self.processor_seconds += sum(found.seconds for found in rows)

        def take() -> None:
            for index, found in zip(indices.tolist(), rows, strict=True):
                self._note(index, found)

        labels_b = np.tile(self.labels_n[indices], len(places_of))
        return ReadImages(pixels_cbyxc.reshape(-1, *size[2:]), labels_b, take)

    def sources(self, index: int) -> list[int]:
        """The files that the image at ``index``, which was read before, depends on.

        Its own file and, if that is unreadable, those after it up to the substitute.
        """
        sources = []
        for candidate in self._unreadable.candidates(index):
            sources.append(candidate)
            if candidate not in self._unreadable:
                break
        return sources

    def _find(self, index: int, places: Sequence[Place | None] = (None,)) -> "_Found":
        """The image at ``index``, or its substitute."""
        errors = []
        for candidate in self._unreadable.candidates(index):
            if candidate in self._unreadable:
                continue
            try:
                source = self.files.source(candidate)
                crops = read_image(source, self.image_size, self._crops, places)
                content = 0 if self.hashes_n is None else content_hash(source)
            except InputError as error:
                refuse_lost(error)
                errors.append((candidate, error))
                continue
            return _Found(candidate, crops, content, errors)
        return _Found(None, [], 0, errors)

    def _note(self, index: int, found: "_Found") -> None:
        """Takes over what reading the image at ``index`` has found; raises as ``batch`` does."""
        for candidate, error in found.errors:
            self._unreadable.report(candidate, error)
        if found.source is None:
            raise self._unreadable.class_error(index)
        if self.hashes_n is not None:
            if int(self.hashes_n[found.source]) not in (0, found.content):
                raise InputError(
                    f"{quoted(self.files.path(found.source))}: is another image than the one that "
                    "was trained on; expected the same (put it back, or --no-resume starts from "
                    "the beginning, or another --out starts a new run)"
                )
            self.hashes_n[found.source] = found.content


@dataclass(frozen=True, eq=False)
class _Found:
    """What reading an image has found."""

    source: int | None
    """The file that it comes from, its own or its substitute's; None if there is neither."""
    crops: list[np.ndarray]
    """(Y, X, 3) uint8 each."""
    content: int
    """The hash of the file; 0 if it was not asked for."""
    errors: list[tuple[int, InputError]]
    """The files that cannot be read and were not known for it, and why."""
    seconds: float = 0.0
    """Processor time."""


def load_image_tree(
    root: str | Path,
    image_size: tuple[int, int],
    *,
    val_fraction: float | None = None,
    memory_limit: int = 2**30,
    random_crops: bool = False,
) -> tuple[ImageSet | ImageFolder, ImageSet | ImageFolder]:
    """The training and validation images of a folder or shards; ``find_images`` says which.

    ``read_image`` fits an image to ``image_size`` (rows, columns). A split that takes at most
    ``memory_limit`` bytes is decoded now, once; a larger one batch by batch. Either way the next
    readable image of the class stands in for an unreadable one, with a warning, so an epoch has
    the same images whether they fit into memory or not. random_crops: images are cropped as
    published (``crops``), the training images at random: they are always decoded batch by batch.

    Raises InputError as ``find_images`` does, if a class has no readable image, and if more than 10
    and more than 1 % of a split are unreadable.
    """
    most = memory_limit // (image_size[0] * image_size[1] * 3)
    in_memory = (0 if random_crops else most, most)
    train, val = (
        ImageFolder(files, image_size, random_crops)
        if len(files) > limit
        else _decode_all(files, image_size, random_crops)
        for files, limit in zip(
            find_images(Path(root), val_fraction, kept=True), in_memory, strict=True
        )
    )
    return train, val


def load_folder(folder: str | Path, image_size: tuple[int, int]) -> ImageFolder:
    """All images below ``folder``, at any depth, or of shards, as one class.

    Raises InputError if there is none, and if too many are unreadable (``load_image_tree``).
    """
    return ImageFolder(find_all(Path(folder)), image_size)


def read_image(
    source: Path | BytesIO,
    image_size: tuple[int, int],
    crops: bool = False,
    places: Sequence[Place | None] = (None,),
) -> list[np.ndarray]:
    """An image file as uint8 (rows, columns, 3) of ``image_size`` (rows, columns), at each place.

    ``read_picture`` reads it; ``fit_picture`` fits it or, if ``crops``, ``crops_of`` crops it.
    Raises InputError as these do.
    """
    picture = read_picture(source)
    if crops:
        return [np.asarray(crop) for crop in crops_of(picture, image_size, places)]
    return [np.asarray(fit_picture(picture, image_size))] * len(places)


def _decode_all(files: ImageFiles, image_size: tuple[int, int], crops: bool) -> ImageSet:
    images_nyxc = np.empty((len(files), *image_size, 3), np.uint8)
    hashes_n = np.zeros(len(files), np.uint64)
    unreadable = UnreadableImages(files)

    def decode(index: int) -> None:
        try:
            source = files.source(index)
            hashes_n[index] = content_hash(source)
            [images_nyxc[index]] = read_image(source, image_size, crops)
        except InputError as error:
            unreadable.add(index, error)

    with ThreadPoolExecutor() as pool:
        _finish(pool.map(decode, range(len(files))), len(files), f"reading {files.folder}")
    for index, stand_in in unreadable.stand_ins():
        images_nyxc[index] = images_nyxc[stand_in]
    unreadable.report_all()
    return ImageSet(images_nyxc, files.labels_n, files.classes, replace(files, hashes_n=hashes_n))


def _finish(work: Iterator[object], total: int, description: str) -> None:
    """Runs ``work`` on ``total`` images to its end, with a progress bar."""
    with counted(total, description, "images") as advance:
        for _ in work:
            advance()
