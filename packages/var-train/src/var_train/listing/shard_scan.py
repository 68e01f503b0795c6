"""Which images a set of shards holds, in the form that ``folder_scan`` gives those of a folder.

Shards are tar files: those of a pattern such as ``train-{0000..1023}.tar``, of a folder that holds
nothing else, or of its folders train and val. ``shard_index`` says what they hold.
"""

import logging
import os
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from var_tokenizer.common import InputError, check_number, is_picture_name, open_regular, quoted

from var_train.listing.folder_scan import is_ignored
from var_train.listing.image_files import ImageFiles, first_of, hold_out
from var_train.listing.kept_lists import FRESH, KeptLists
from var_train.listing.name_list import NameList
from var_train.listing.shard_index import NO_LABEL, ShardIndex, index_shard
from var_train.listing.shard_reader import ShardMembers, ShardReader, State, state_of
from var_train.reports.progress_bars import counted

CLASSES_FILE = "classes.txt"  # beside the shards
_READERS = 8  # threads: on a network disk most of the time goes by waiting
_AT_ONCE = 4 * _READERS  # shards
_MOST_SHARDS = 10**6
_LONGEST_NAMES = 2**24  # bytes of classes.txt
_SPLITS = {"train": "train", "test": "test"} | dict.fromkeys(("val", "valid", "validation"), "val")
_SPLIT = re.compile(rf"(?<![a-z])({'|'.join(_SPLITS)})(?![a-z])")
_RANGE = re.compile(r"(\d{1,18})\.\.(\d{1,18})")

log = logging.getLogger(__name__)


def is_sharded(data: Path) -> bool:
    """Whether ``data`` names shards, and not a folder of images."""
    return bool(_in_folder(data)) if data.is_dir() else data.name.endswith(".tar")


def scan_shards(data: Path, val_fraction: float | None = None) -> tuple[ImageFiles, ImageFiles]:
    """The training and validation images of shards.

    A shard belongs to a split by the last word train, val, valid, validation or test in its name
    or that of its folder; without one, to train. Validation shards that ``data`` does not name are
    looked for beside the training ones. With ``val_fraction``, ``hold_out`` takes about this share
    of each class of the training shards instead.

    The classes are the lines of classes.txt beside the training shards; without it, the labels that
    occur in training, by value.

    Raises InputError as ``index_shard`` does, for a missing shard, for an image without a label,
    for a class without images in a split, and for a label that is no class.
    """
    paths = _shards_of(data)
    train, val = ([path for path in paths if _split_of(path) == s] for s in ("train", "val"))
    if not train:
        raise InputError(f"{quoted(data)}: no training shards; expected train-*.tar, say")
    if val_fraction is not None:
        check_number("val_fraction", val_fraction, above=0, below=1)
        if val:
            log.info("%s: not reading %d validation shard(s)", quoted(data), len(val))
        return hold_out(_by_class([_scan(train)], data)[0], val_fraction)
    if not val:
        folders = sorted({path.parent for path in train})
        val = [p for f in folders for p in sorted(f.glob("*.tar")) if _split_of(p) == "val"]
    if not val:
        raise InputError(
            f"{quoted(data)}: no validation shards; expected val-*.tar beside the training ones "
            "(or --val-fraction)"
        )
    of_train, of_val = _by_class([_scan(train), _scan(val)], data)
    return of_train, of_val


def scan_as_one_class(data: Path) -> ImageFiles:
    """All images of shards, in their order, as one class; they need no labels.

    Raises InputError as ``index_shard`` does.
    """
    files = _scan(_shards_of(data))
    name = files.folder.resolve().name
    return replace(files, labels_n=np.zeros(len(files), np.int32), classes=(name,))


def expand(pattern: str) -> list[str]:
    """The names that a pattern with braces stands for, in order, as a shell expands them.

    ``{0000..0012}`` is a range, whose zeros in front give the width, and ``{a,b}`` a choice; both
    may be nested. Raises InputError for more than a million names.
    """
    names = [""]
    rest = pattern
    while rest:
        inner, after = _in_braces(rest)
        choices = [rest[0]] if inner is None else list(_choices(inner))
        rest = rest[1:] if inner is None else after
        if len(names) * len(choices) > _MOST_SHARDS:
            raise InputError(f"{quoted(pattern)}: expected at most {_MOST_SHARDS} shards")
        names = [name + choice for name in names for choice in choices]
    return names


def _in_braces(text: str) -> tuple[str | None, str]:
    """What is in the braces that ``text`` begins with, and what follows; None if in none."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            inner = text[1:i]
            return (inner, text[i + 1 :]) if "," in inner or _RANGE.fullmatch(inner) else (None, "")
    return None, ""


def _choices(inner: str) -> Iterator[str]:
    ends = _RANGE.fullmatch(inner)
    if ends is not None:
        first, last = int(ends[1]), int(ends[2])
        if abs(last - first) >= _MOST_SHARDS:
            raise InputError(f"{{{inner}}}: expected at most {_MOST_SHARDS} shards")
        padded = any(end[0] == "0" and len(end) > 1 for end in ends.groups())
        width = max(map(len, ends.groups())) if padded else 0
        step = 1 if first <= last else -1
        yield from (f"{n:0{width}d}" for n in range(first, last + step, step))
        return
    depth, begin = 0, 0
    for i, character in enumerate(inner + ","):
        depth += (character == "{") - (character == "}")
        if character == "," and depth == 0:
            yield from expand(inner[begin:i])
            begin = i + 1


def _shards_of(data: Path) -> list[Path]:
    if data.is_dir():
        return _in_folder(data)
    paths = [Path(name) for name in expand(str(data))]
    if len(set(paths)) < len(paths):
        raise InputError(f"{quoted(data)}: names a shard twice; expected each once")
    return paths


def _in_folder(folder: Path) -> list[Path]:
    """The shards of a folder, or of its folders train, val and test; none if it holds others."""
    shards, folders = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if is_ignored(entry.name):
                    continue
                if entry.is_dir():
                    folders.append(entry.name)
                elif is_picture_name(entry.name):
                    return []
                elif entry.name.endswith(".tar"):
                    shards.append(entry.name)
    except OSError:
        return []
    if not folders:
        return [folder / name for name in sorted(shards)]
    if not _SPLITS.keys() >= set(folders):
        return []
    inner = [_in_folder(folder / name) for name in sorted(folders)]
    return [path for paths in inner for path in paths] if all(inner) else []


def _split_of(path: Path) -> str:
    words = _SPLIT.findall(path.name.lower()) or _SPLIT.findall(path.parent.name.lower())
    return _SPLITS[words[-1]] if words else "train"


def _scan(paths: list[Path]) -> ImageFiles:
    """All images of shards in their order, labelled as there, NO_LABEL included."""
    folder = Path(os.path.commonpath([path.parent for path in paths]))
    kept, states, counts = KeptLists(), [], []
    # grown in place: to hold the indices of all shards until they are joined takes twice the memory
    text, offsets, sizes, labels = (bytearray() for _ in range(4))
    with (
        kept.one_first(folder),
        counted(len(paths), f"indexing {quoted(folder)}", "shards") as advance,
        ThreadPoolExecutor(_READERS) as pool,
    ):
        for path, (index, state) in zip(paths, _indices_of(pool, kept, paths), strict=True):
            prefix = f"{path.relative_to(folder)}/"
            text += NameList.joined([(prefix, index.names)]).terminated.data
            offsets += index.offsets_n.data
            sizes += index.sizes_n.data
            labels += index.labels_n.data
            states.append(state)
            counts.append(len(index))
            advance()
    shard_n = np.repeat(np.arange(len(paths), dtype=np.int32), counts)
    times_s = np.array([time for _, time, _ in states], np.int64)
    offsets_n = np.frombuffer(offsets, np.int64)
    return ImageFiles(
        folder,
        NameList(np.frombuffer(text, np.uint8)),
        np.frombuffer(labels, np.int32),
        (),
        np.frombuffer(sizes, np.int64),
        times_s[shard_n],
        members=ShardMembers(ShardReader(paths, states), shard_n, offsets_n),
    )


def _indices_of(
    pool: ThreadPoolExecutor, kept: KeptLists, paths: list[Path]
) -> Iterator[tuple[ShardIndex, State]]:
    """Yields ``_index_of`` each; few wait in memory to be taken."""
    for begin in range(0, len(paths), _AT_ONCE):
        yield from pool.map(partial(_index_of, kept), paths[begin : begin + _AT_ONCE])


def _index_of(kept: KeptLists, path: Path) -> tuple[ShardIndex, State]:
    """The index of a shard, from the last time if nothing was written to the shard since."""
    try:
        began, status = time.time_ns(), path.stat()
        state = state_of(status)
        text = f"{state} {status.st_ctime_ns}"
        arrays = kept.read(path, text)
        if arrays is not None and (known := ShardIndex.of_arrays(arrays)) is not None:
            return known, state
        index = index_shard(path)
        if state_of(path.stat()) != state:
            raise InputError(
                f"{quoted(path)}: was written to while it was indexed; expected it whole"
            )
    except OSError as error:
        raise InputError(f"{quoted(path)}: no such shard ({error.strerror})") from error
    if max(status.st_mtime_ns, status.st_ctime_ns) < began - FRESH:
        kept.keep(path, text, index.arrays())
    return index, state


def _by_class(splits: list[ImageFiles], data: Path) -> list[ImageFiles]:
    """The splits, training first, with their labels as indices into their classes."""
    for files in splits:
        unlabelled = np.flatnonzero(files.labels_n == NO_LABEL)
        if unlabelled.size:
            raise InputError(
                f"{quoted(files.path(unlabelled[0]))}: no label; expected a .cls beside it, or a "
                ".json with an integer as its label or cls"
            )
    values_v, path = np.unique(splits[0].labels_n), None
    classes = tuple(map(str, values_v.tolist()))
    for folder in [data, splits[0].folder]:
        if (folder / CLASSES_FILE).is_file():
            path = folder / CLASSES_FILE
            classes = _class_names(path)
            values_v = np.arange(len(classes))
    done = []
    for files in splits:
        labels_n = np.searchsorted(values_v, files.labels_n).astype(np.int32)
        known_n = labels_n < len(values_v)
        known_n[known_n] = values_v[labels_n[known_n]] == files.labels_n[known_n]
        if not known_n.all():
            first = int(known_n.argmin())
            lines = f"less than {len(classes)}, the lines of {quoted(path)}" if path else ""
            raise InputError(
                f"{quoted(files.path(first))}: label {files.labels_n[first]}; expected "
                f"{lines or 'one that training has, too'}"
            )
        counts_v = np.bincount(labels_n, minlength=len(classes))
        if not counts_v.all():
            empty = [classes[i] for i in np.flatnonzero(counts_v == 0)]
            raise InputError(
                f"{quoted(files.folder)}: no image of {len(empty)} class(es) in these "
                f"shards: {first_of(empty)}; expected at least one of each"
            )
        by_class = replace(files, labels_n=labels_n, classes=classes)
        if (np.diff(labels_n) < 0).any():
            by_class = by_class.take(np.argsort(labels_n, kind="stable"))
        done.append(by_class)
    return done


def _class_names(path: Path) -> tuple[str, ...]:
    with open_regular(path) as file:
        content = file.read(_LONGEST_NAMES + 1)
    try:
        names = [line.strip() for line in content.decode().removesuffix("\n").split("\n")]
    except UnicodeDecodeError as error:
        raise InputError(
            f"{quoted(path)}: no UTF-8; expected the name of a class a line"
        ) from error
    twice = len(set(names)) < len(names)
    if len(content) > _LONGEST_NAMES or not all(names) or twice:
        what = "too long" if len(content) > _LONGEST_NAMES else "a name twice" if twice else "a gap"
        raise InputError(f"{quoted(path)}: {what}; expected the name of a class a line, each once")
    return tuple(names)
