"""Which images a folder holds, for training, tokenizing and evaluation alike.

A file counts as an image by its name (``is_picture_name``); its content does not matter. The scan
takes regular files and links to them at any depth, and follows links to folders, each folder once.
It skips hidden names, such as ``._0.png`` and ``.ipynb_checkpoints``, and what operating systems
leave behind (``IGNORED``).
"""

import logging
import os
import time
from array import array
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from var_tokenizer.common import (
    PICTURE_SUFFIXES,
    InputError,
    check_number,
    is_picture_name,
    quoted,
)
from var_tokenizer.common.progress import working

from var_train.listing.image_files import ImageFiles, first_of, gone_and_new, hold_out
from var_train.listing.kept_folders import FolderList, Visited
from var_train.listing.name_list import NameList
from var_train.reports.progress_bars import counted

LAYOUT = (
    "DIR/train/CLASS/* and DIR/val/CLASS/*, or DIR/CLASS/* with --val-fraction, or "
    "'DIR/train-{0000..1023}.tar'"
)
IGNORED = {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information"}
IGNORED |= {"lost+found", "Thumbs.db", "desktop.ini"}
_OTHER_SPLITS = frozenset(("val", "valid", "validation", "test"))

log = logging.getLogger(__name__)


def scan_tree(
    root: Path, val_fraction: float | None = None, kept: bool = False
) -> tuple[ImageFiles, ImageFiles]:
    """The training and validation images of ``root``.

    Without ``val_fraction``, those of ROOT/train/CLASS and ROOT/val/CLASS. With it, a number
    between 0 and 1, ``hold_out`` takes about this share of each class to validate on: of
    ROOT/train/CLASS if ROOT has nothing besides train but other splits, else of ROOT/CLASS.
    kept: see ``scan_classes``.

    Raises InputError for a folder that is missing, empty, without classes or cannot be listed,
    for a class without images, and if the classes of train and val differ.
    """
    if not root.is_dir():
        raise InputError(f"{quoted(root)}: no such folder; expected {LAYOUT}")
    names = _visible(root)
    if not names:
        raise InputError(f"{quoted(root)}: this folder is empty; expected {LAYOUT}")
    train_folder, val_folder = root / "train", root / "val"
    if val_fraction is not None:
        check_number("val_fraction", val_fraction, above=0, below=1)
        folders = {name for name in names if (root / name).is_dir()}
        if "train" not in folders or folders - {"train"} - _OTHER_SPLITS:
            return hold_out(scan_classes(root, class_names(root), kept), val_fraction)
        unread = sorted(folders - {"train"})
        if unread:
            log.info("%s: not reading %s beside train", quoted(root), ", ".join(unread))
        return hold_out(scan_classes(train_folder, class_names(train_folder), kept), val_fraction)
    classes, val_classes = class_names(train_folder), class_names(val_folder)
    missing_in = gone_and_new(sorted(val_classes), sorted(classes))
    for folder, missing in zip((train_folder, val_folder), missing_in, strict=True):
        if missing:
            raise InputError(
                f"{quoted(folder)}: no folder for {len(missing)} class(es) of the other split: "
                f"{first_of(missing)}; expected the same classes in train and val (or "
                "--val-fraction, which holds out images of train)"
            )
    return scan_classes(train_folder, classes, kept), scan_classes(val_folder, classes, kept)


def class_names(split: Path) -> tuple[str, ...]:
    """The folders of ``split`` in the order of their labels: by name, or all numbers by value.

    Raises InputError if there is none.
    """
    if not split.is_dir():
        raise InputError(f"{quoted(split)}: no such folder; expected {LAYOUT}")
    classes = [name for name in _visible(split) if (split / name).is_dir()]
    if not classes:
        raise InputError(f"{quoted(split)}: no class folders; expected {LAYOUT}")
    if all(name.isascii() and name.isdecimal() for name in classes):
        by_value = sorted(classes, key=lambda name: (int(name), name))
        if by_value != classes:
            log.info(
                "%s: all classes are numbers, so they are sorted by value: %s",
                *(quoted(split), first_of(by_value, 5)),
            )
        return tuple(by_value)
    return tuple(classes)


def scan_classes(folder: Path, classes: tuple[str, ...], kept: bool = False) -> ImageFiles:
    """All images of FOLDER/CLASS, at any depth, for each of ``classes``.

    kept: a list of the last time will do if no folder has changed since (``kept_folders``): who
    reads a file of it finds out whether it was rewritten. Logs in one line how many files of which
    kinds it left out. Raises InputError for a class without an image and for a folder that cannot
    be listed.
    """
    if not kept:
        return _scan(folder, classes)
    listed = FolderList(folder, classes, frozenset(IGNORED))
    with listed.lists.one_first(folder):
        recalled = listed.recall()
        if recalled is None:
            return _scan(folder, classes, listed)
    _say_left_out(folder, recalled[1])
    return recalled[0]


def _scan(folder: Path, classes: tuple[str, ...], listed: FolderList | None = None) -> ImageFiles:
    left_out: Counter[str] = Counter()
    visited: Visited = []
    began = time.time_ns()
    found = []
    with counted(len(classes), f"listing {folder}", "classes") as advance:
        for name in classes:
            of_class = _walk(folder, name, left_out, visited)
            if not of_class.names:
                raise _no_image(folder / name, left_out)
            found.append(of_class)
            advance()
    _say_left_out(folder, left_out)
    files = _image_files(folder, found, classes)
    if listed is not None:
        listed.keep(files, visited, began, left_out)
    return files


def scan_folder(folder: Path) -> ImageFiles:
    """All images of ``folder``, at any depth, as one class of its name; see ``scan_classes``."""
    if not folder.is_dir():
        raise InputError(f"{quoted(folder)}: no such folder; expected one of images")
    left_out: Counter[str] = Counter()
    with working(f"listing {quoted(folder)}"):
        found = _walk(folder, "", left_out, [])
    if not found.names:
        raise _no_image(folder, left_out)
    _say_left_out(folder, left_out)
    return _image_files(folder, [found], (folder.resolve().name,))


@dataclass(frozen=True, eq=False)
class _Listed:
    """Images, sorted by name, by fields of ``ImageFiles``: a tuple takes 200 bytes an image."""

    names: NameList
    sizes_n: np.ndarray
    times_n: np.ndarray


def _walk(folder: Path, below: str, left_out: Counter[str], visited: Visited) -> _Listed:
    """All images of FOLDER/BELOW, by their names below ``folder``."""
    names, in_order, last = bytearray(), True, ""
    numbers = array("q")  # size and time of each
    waiting, seen = [below], set()
    while waiting:
        name = waiting.pop()
        files, folders = [], []
        try:
            status = (folder / name).stat()
            visited.append((name, status))
            if (status.st_dev, status.st_ino) in seen:  # a link to a folder that has been read
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder / name) as entries:
                for entry in entries:
                    if is_ignored(entry.name):
                        continue
                    try:
                        if entry.is_dir():
                            folders.append(f"{name}/{entry.name}" if name else entry.name)
                        elif not entry.is_file():
                            entry.stat()  # which raises an OSError for a broken link
                            left_out["pipe or device"] += 1
                        elif not is_picture_name(entry.name):
                            left_out[_suffix(entry.name)] += 1
                        else:
                            files.append(entry.name)
                    except OSError:  # a link to itself, or it has just been removed
                        left_out["broken link"] += 1
        except OSError as error:
            raise _unlisted(folder / name, error) from error
        waiting += sorted(folders, reverse=True)
        files.sort()
        for file in files:
            inner = f"{name}/{file}" if name else file
            try:
                status = os.stat(f"{folder}/{inner}")  # noqa: PTH116 (a Path takes as long again)
            except OSError:
                left_out["broken link"] += 1
                continue
            names += os.fsencode(inner) + b"\0"
            numbers.extend((status.st_size, status.st_mtime_ns))
            in_order &= last <= inner
            last = inner
    found, numbers_n2 = NameList(bytes(names)), np.array(numbers, np.int64).reshape(-1, 2)
    if not in_order:  # some folders among others, or among files
        every = list(found)
        order_n = np.array(sorted(range(len(every)), key=every.__getitem__))
        found, numbers_n2 = found.take(order_n), numbers_n2[order_n]
    return _Listed(found, numbers_n2[:, 0], numbers_n2[:, 1])


def is_ignored(name: str) -> bool:
    """Whether a file or folder of this name is hidden or left by an operating system."""
    return name.startswith(".") or name in IGNORED


def _visible(folder: Path) -> list[str]:
    """The names in a folder that are not ignored, sorted."""
    try:
        return sorted(path.name for path in folder.iterdir() if not is_ignored(path.name))
    except OSError as error:
        raise _unlisted(folder, error) from error


def _unlisted(folder: Path, error: OSError) -> InputError:
    return InputError(f"{quoted(folder)}: cannot list this folder: {error.strerror}")


def _no_image(folder: Path, left_out: Counter[str]) -> InputError:
    there = f" (left out: {_kinds(left_out)})" if left_out else ""
    suffixes = ", ".join(sorted(PICTURE_SUFFIXES))
    return InputError(f"{quoted(folder)}: no image; expected {suffixes} files{there}")


def _say_left_out(folder: Path, left_out: Counter[str]) -> None:
    if left_out:
        log.info(
            "%s: left out %d file(s) that are not images by name or kind: %s",
            *(quoted(folder), left_out.total(), _kinds(left_out)),
        )


def _kinds(left_out: Counter[str]) -> str:
    most = left_out.most_common(8)
    rest = left_out.total() - sum(count for _, count in most)
    return ", ".join(f"{count} {kind}" for kind, count in most) + (f", {rest} more" if rest else "")


def _suffix(name: str) -> str:
    suffix = Path(name).suffix.lower()
    return quoted(suffix[:16]) if suffix else "without a suffix"


def _image_files(folder: Path, found: Sequence[_Listed], classes: tuple[str, ...]) -> ImageFiles:
    counts = [len(of_class.names) for of_class in found]
    return ImageFiles(
        folder,
        NameList.joined(("", of_class.names) for of_class in found),
        np.repeat(np.arange(len(classes), dtype=np.int32), counts),
        classes,
        np.concatenate([of_class.sizes_n for of_class in found]),
        np.concatenate([of_class.times_n for of_class in found]),
    )
