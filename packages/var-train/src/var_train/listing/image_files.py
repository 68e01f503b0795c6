"""A list of image files, and what is said of their names and contents."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from io import BytesIO
from pathlib import Path

import numpy as np
from var_tokenizer.common import MAX_PIXELS, InputError, open_regular, quoted

from var_train.listing.name_list import NameList
from var_train.listing.shard_reader import ShardMembers
from var_train.listing.source_errors import SourceError

_PART = 2**20  # bytes that are hashed at once
_MOST_PARTS = 8 * MAX_PIXELS // _PART + 1


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """N image files, class after class: by name within a class, or as shards hold them."""

    folder: Path
    names: NameList
    """Paths below ``folder``; in shards, SHARD/MEMBER."""
    labels_n: np.ndarray
    """(N,) int32, indices into ``classes``."""
    classes: tuple[str, ...]
    sizes_n: np.ndarray
    """(N,) int64, bytes."""
    times_n: np.ndarray
    """(N,) int64, when each, or its shard, was last written, in nanoseconds since 1970."""
    hashes_n: np.ndarray | None = None
    """(N,) uint64, of the contents (``content_hash``); None if they were not read."""
    members: ShardMembers | None = None
    """Where the contents lie, if in shards."""
    stale: Callable[[], None] | None = None
    """Of a list that was kept from an earlier scan: forgets it."""

    def __len__(self) -> int:
        return len(self.names)

    def path(self, index: int) -> Path:
        """What to call a file in a message, and where it lies."""
        return self.folder / self.names[index]

    def source(self, index: int) -> Path | BytesIO:
        """What to read the content of a file from. Raises SourceError if it cannot be had."""
        path = self.path(index)
        if self.members is not None:
            return self.members.read(index, int(self.sizes_n[index]), quoted(path))
        if self.stale is not None and not self.is_as_listed(index):
            self.stale()
            raise SourceError(
                f"{quoted(path)}: was rewritten or removed after this folder was listed; expected "
                "the file that was listed (the same command lists the folder anew, and goes on if "
                "the images are still those that it was trained on)"
            )
        return path

    def is_as_listed(self, index: int) -> bool:
        """Whether a file, or its shard, still has the size and time that the scan found."""
        if self.members is not None:
            return self.members.is_as_indexed(index)
        try:
            status = self.path(index).stat()
        except OSError:
            return False
        found = (status.st_size, status.st_mtime_ns)
        return found == (self.sizes_n[index], self.times_n[index])

    def take(self, indices: np.ndarray) -> "ImageFiles":
        """The files at ``indices``, whose labels ascend."""
        return replace(
            self,
            names=self.names.take(indices),
            labels_n=self.labels_n[indices],
            sizes_n=self.sizes_n[indices],
            times_n=self.times_n[indices],
            members=None if self.members is None else self.members.take(indices),
        )

    def class_place(self, name: str) -> str:
        """What to call the images of a class in a message."""
        in_folder = self.members is None and len(self.classes) > 1
        of_class = "" if in_folder or len(self.classes) < 2 else f": class {quoted(name)}"
        return quoted(self.folder / name if in_folder else self.folder) + of_class


def hold_out(files: ImageFiles, fraction: float) -> tuple[ImageFiles, ImageFiles]:
    """Splits ``files`` into training and validation images, about ``fraction`` of each class.

    Whether an image is held out depends on its class and name alone, in shards on the name of the
    member, so adding, removing or reordering other images does not move it. Only if this would
    leave a class without images on one side, the image that comes closest changes sides.

    Raises InputError for a class of one image.
    """
    names: Iterable[str] = files.names
    if files.members is not None:
        names = (name.partition(".tar/")[2] for name in names)
    places_n = np.fromiter(map(_place, names), np.float64, len(files))
    held_n = places_n < fraction
    numbers = np.arange(len(files.classes) + 1, dtype=np.int32)  # other types copy the labels
    ends = np.searchsorted(files.labels_n, numbers)
    for name, begin, end in zip(files.classes, ends[:-1], ends[1:], strict=True):
        if end - begin < 2:
            raise InputError(
                f"{files.class_place(name)}: one image; expected at least two, one of them "
                "for validation"
            )
        if not held_n[begin:end].any():
            held_n[begin + places_n[begin:end].argmin()] = True
        elif held_n[begin:end].all():
            held_n[begin + places_n[begin:end].argmax()] = False
    return files.take(np.flatnonzero(~held_n)), files.take(np.flatnonzero(held_n))


def content_hash(source: Path | BytesIO) -> int:
    """64 bits of BLAKE2b of a file's content.

    Reads no more than the largest image can take, in case the file is endless. Raises InputError
    if it cannot be read.
    """
    if isinstance(source, BytesIO):
        return int.from_bytes(blake2b(source.getbuffer(), digest_size=8).digest(), "little")
    digest = blake2b(digest_size=8)
    try:
        with open_regular(source) as file:
            for _ in range(_MOST_PARTS):
                part = file.read(_PART)
                digest.update(part)
                if len(part) < _PART:
                    break
    except OSError as error:
        raise InputError(f"{quoted(source)}: cannot read this file: {error.strerror}") from error
    return int.from_bytes(digest.digest(), "little")


def first_of(names: list[str], count: int = 3) -> str:
    """The first few of ``names``, as a message lists them."""
    return ", ".join(quoted(name) for name in names[:count]) + (", ..." if names[count:] else "")


def gone_and_new(before: Sequence[str], now: Sequence[str]) -> tuple[list[str], list[str]]:
    """What is in ``before`` alone, and what is in ``now`` alone, in their order."""
    old, new = set(before), set(now)
    return [name for name in before if name not in new], [name for name in now if name not in old]


def _place(name: str) -> float:
    """A number in [0, 1) that follows from a name."""
    digest = blake2b(os.fsencode(name), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64
