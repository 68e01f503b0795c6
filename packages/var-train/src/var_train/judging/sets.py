"""The sets that are judged: images in an ``.npz`` file or a folder.

Images are uint8 (Y, X, 3), all of a set of one size. Everything that could stop a judgement is
found by ``check``, which reads all images once, before a network looks at any.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
from var_tokenizer.common import MAX_PIXELS, InputError, quoted, read_picture

from var_train.judging.npz_files import NpzFile
from var_train.listing.folder_scan import scan_folder
from var_train.listing.image_files import first_of

Measured = Callable[[int], None]


class ImagesToJudge(Protocol):
    """N images of one size."""

    path: Path
    labels_n: np.ndarray | None
    """(N,) int64, the classes that were asked for; None if nothing says."""

    def __len__(self) -> int:
        """N."""

    def check(self, measured: Measured) -> tuple[int, int]:
        """Reads every image once, and gives (rows, columns).

        measured: called with numbers of images. Raises InputError, which names the file, for a
        damaged image and for sizes that differ.
        """

    def batches(self, batch: int) -> Iterator[np.ndarray]:
        """Yields all images in their order, (``batch``, Y, X, 3) and at the end what is left."""

    def chosen(self, indices: np.ndarray) -> list[np.ndarray]:
        """The images at ``indices``, which may repeat."""


class NpzImages:
    """``arr_0``, uint8 (N, Y, X, 3), and maybe ``arr_1``, labels (N,): OpenAI's evaluator's layout.

    Raises InputError for another shape, dtype or range.
    """

    def __init__(self, file: NpzFile) -> None:
        self.path, self._file = file.path, file
        array = file.arrays["arr_0"]
        expected = "expected uint8 (N, Y, X, 3), N at least 1"
        name = f"{quoted(file.path)}: arr_0"
        shape = array.shape
        if len(shape) != 4 or shape[3] != 3 or min(shape) < 1 or shape[1] * shape[2] > MAX_PIXELS:
            raise InputError(f"{name} has shape {shape}; {expected}")
        if array.dtype != np.uint8:
            low, high = self._range()
            raise InputError(
                f"{name} is {array.dtype} in [{low:.3g}, {high:.3g}]; {expected}"
                f"{_remedy(low, high)}"
            )
        self._size = shape[1], shape[2]
        self.labels_n = self._labels() if "arr_1" in file.arrays else None

    def __len__(self) -> int:
        return self._file.arrays["arr_0"].shape[0]

    def check(self, measured: Measured) -> tuple[int, int]:
        """See ``ImagesToJudge``."""
        each, before, done = self._size[0] * self._size[1] * 3, 0, 0
        for count in self._file.parts("arr_0"):
            done += count
            measured(min(done // each, len(self)) - before)
            before = min(done // each, len(self))
        return self._size

    def batches(self, batch: int) -> Iterator[np.ndarray]:
        """See ``ImagesToJudge``."""
        return self._file.rows("arr_0", batch)

    def chosen(self, indices: np.ndarray) -> list[np.ndarray]:
        """See ``ImagesToJudge``."""
        wanted, found = set(indices.tolist()), {}
        for n, image_yxc in enumerate(i[0] for i in self.batches(1)):
            if n in wanted:
                found[n] = image_yxc
            if len(found) == len(wanted):
                break
        return [found[n] for n in indices.tolist()]

    def _range(self) -> tuple[float, float]:
        """That of the first values."""
        first = self._file.first("arr_0")
        return float(first.min()), float(first.max())

    def _labels(self) -> np.ndarray:
        array, count = self._file.arrays["arr_1"], len(self)
        if array.dtype.kind not in "iu" or array.shape != (count,):
            raise InputError(
                f"{quoted(self.path)}: arr_1 is {array.dtype} {array.shape}; expected {count} "
                "integers, one label for each image, or no arr_1"
            )
        return self._file.read("arr_1").astype(np.int64)


def _remedy(low: float, high: float) -> str:
    """What makes uint8 of images in this range."""
    if low >= 0 and high <= 1:
        return ": multiply by 255 and round to uint8"
    if low >= -1 and high <= 1:
        return ": add 1, multiply by 127.5 and round to uint8"
    return ""


class FolderImages:
    """All images below a folder, at any depth, sorted by name.

    Raises InputError if there is none.
    """

    def __init__(self, folder: Path) -> None:
        self.path, self._files = folder, scan_folder(folder)
        self.labels_n: np.ndarray | None = None
        self._pool = ThreadPoolExecutor(thread_name_prefix="decode")

    def __len__(self) -> int:
        return len(self._files)

    def check(self, measured: Measured) -> tuple[int, int]:
        """See ``ImagesToJudge``."""
        unreadable, first = [], None
        for n, found in enumerate(self._pool.map(self._size, range(len(self)))):
            measured(1)
            if isinstance(found, InputError):
                unreadable.append(str(found))
                continue
            first = (n, found) if first is None else first
            if found != first[1]:
                (y, x), (first_y, first_x) = found, first[1]
                raise InputError(
                    f"{quoted(self._files.path(n))}: {y} x {x} pixels, but "
                    f"{quoted(self._files.names[first[0]])} has {first_y} x {first_x}; expected "
                    "images of one size"
                )
        if unreadable:
            raise InputError(
                f"{quoted(self.path)}: {len(unreadable)} of {len(self)} images are unreadable; "
                f"expected none, for others in their place would change the figures: "
                f"{first_of(unreadable)}"
            )
        assert first is not None
        return first[1]

    def batches(self, batch: int) -> Iterator[np.ndarray]:
        """See ``ImagesToJudge``."""
        places = iter(range(len(self)))
        while chosen := list(islice(places, batch)):
            yield np.stack(list(self._pool.map(self._read, chosen)))

    def chosen(self, indices: np.ndarray) -> list[np.ndarray]:
        """See ``ImagesToJudge``."""
        return [self._read(n) for n in indices.tolist()]

    def _read(self, n: int) -> np.ndarray:
        return np.asarray(read_picture(self._files.path(n)))

    def _size(self, n: int) -> tuple[int, int] | InputError:
        try:
            rows, columns, _ = self._read(n).shape
        except InputError as error:
            return error
        return rows, columns
