"""Whether a resumed run still has the images that it was trained on.

The settings of a checkpoint hold ``DataRecord.settings``: the names of the classes and a digest of
the files. Images that fit into memory are read at every start anyway, so their digest is of names
and contents; that of larger data is of names and sizes. It holds no path, so a run can continue
after its folder was moved or copied. Token caches have a digest of all their tokens.

``checkpoints/STAGE/data.safetensors`` lists the files one by one, to say which of them changed; it
takes about 60 bytes an image. Images that are not read at the start are hashed when a step reads
them, and the list keeps the hashes: a later step that reads another image there refuses it. Until
an image is hashed, its time stands for its content: a file that was rewritten while others were not
counts as another image, even if its size is the same; if the times of all files differ, they count
as a copy.
"""

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from var_tokenizer.common import (
    InputError,
    TensorHeader,
    quoted,
    read_header,
    replacing,
    write_tensors,
)

from var_train.data.image_sources import ImageFolder
from var_train.listing.image_files import ImageFiles, first_of, gone_and_new
from var_train.listing.name_list import NameList
from var_train.parallel import workers

log = logging.getLogger(__name__)

FILE = "data.safetensors"
_TYPES = {"I64": np.int64, "U64": np.uint64}
_PART = 2**20  # bytes or images at once


@dataclass(frozen=True, eq=False)
class DataRecord:
    """The N image files of both splits, training images first."""

    classes: tuple[str, ...]
    counts: tuple[int, int]
    """How many training and validation images there are."""
    names: NameList
    """SPLIT/CLASS/NAME."""
    sizes_n: np.ndarray
    """(N,) int64, bytes."""
    times_n: np.ndarray
    """(N,) int64, nanoseconds."""
    hashes_n: np.ndarray
    """(N,) uint64, of the contents; 0 for those that have not been read. ``watch`` adds to it."""
    read: bool
    """Whether all of them were read at the start."""

    @classmethod
    def of(cls, train: ImageFiles, val: ImageFiles) -> "DataRecord":
        splits = (("train", train), ("val", val))
        hashes = [
            np.zeros(len(files), np.uint64) if files.hashes_n is None else files.hashes_n
            for _, files in splits
        ]
        return cls(
            classes=train.classes,
            counts=(len(train), len(val)),
            names=NameList.joined((f"{split}/", files.names) for split, files in splits),
            sizes_n=np.concatenate([files.sizes_n for _, files in splits]),
            times_n=np.concatenate([files.times_n for _, files in splits]),
            hashes_n=np.concatenate(hashes),
            read=all(files.hashes_n is not None for _, files in splits),
        )

    @property
    def settings(self) -> dict[str, object]:
        """What must stay the same for a run to continue, in JSON's types."""
        digest = hashlib.sha256(self.names.text.data)
        digest.update((self.hashes_n if self.read else self.sizes_n).tobytes())
        return {
            "classes": list(self.classes),
            "images": list(self.counts),
            "files": digest.hexdigest(),
            "read": self.read,
        }

    def watch(self, sources: Sequence[object], folders: Sequence[Path]) -> None:
        """Lets image folders compare what they read with what earlier commands of the run read.

        sources: of the training and the validation images. folders: the checkpoints that the run
        goes on from, whose data ``check_data`` has compared with these.
        """
        if self.read:
            return
        for before in (DataRecord.read_file(folder, self) for folder in folders):
            if before is not None and before.names == self.names:
                unknown_n = self.hashes_n == 0
                self.hashes_n[unknown_n] = before.hashes_n[unknown_n]
        parts = np.split(self.hashes_n, self.counts[:1])  # views, which the sources write to
        for source, hashes_n in zip(sources, parts, strict=True):
            if isinstance(source, ImageFolder):
                source.hashes_n = hashes_n

    def note(self, folder: Path) -> None:
        """Writes FOLDER/data.safetensors with what was read meanwhile. Every worker calls it.

        Raises InputError if two workers have read other images under one name.
        """
        if self.read:
            return
        others = []
        for begin in range(0, len(self.names), _PART):
            of_workers_wn = workers.gather(self.hashes_n[begin : begin + _PART])
            own_n = self.hashes_n[begin : begin + _PART] = of_workers_wn.max(0)
            other_n = ((of_workers_wn != 0) & (of_workers_wn != own_n)).any(0)
            others += (begin + np.flatnonzero(other_n)).tolist()
        if others:
            names = [self.names[i] for i in others]
            raise InputError(
                f"{len(names)} image(s) were replaced during the training: {first_of(names)}; "
                "expected the same in all steps (put them back: the same command goes on after the "
                "last checkpoint)"
            )
        if workers.rank() == 0:
            self.save(folder)

    def save(self, folder: Path) -> None:
        """Writes FOLDER/data.safetensors."""
        arrays = {
            "names": self.names.text,
            "sizes": self.sizes_n,
            "times": self.times_n,
            "hashes": self.hashes_n,
        }
        texts = {name: json.dumps(getattr(self, name)) for name in ("classes", "counts", "read")}
        with replacing(folder / FILE) as temporary:
            write_tensors(temporary, arrays, texts)

    @classmethod
    def read_file(cls, folder: Path, now: "DataRecord | None" = None) -> "DataRecord | None":
        """What ``save`` wrote; None if it is missing or damaged.

        now: whose names, sizes and times it shares where they are the same.
        """
        path = folder / FILE
        try:
            texts, tensors = read_header(path)
            names = _read_names(path, tensors["names"], None if now is None else now.names)
            arrays = {
                name: _read_array(path, about, getattr(now, f"{name}_n", None))
                for name, about in tensors.items()
                if name != "names"
            }
            known = "hashes" in arrays  # up to version 0.1.0 there are all or none
            hashes_n = arrays["hashes"] if known else np.zeros(len(names), np.uint64)
            numbers = (arrays["sizes"], arrays["times"], hashes_n)
            if any(array_n.shape != (len(names),) for array_n in numbers):
                return None
            return cls(
                tuple(json.loads(texts["classes"])),
                tuple(json.loads(texts["counts"])),
                names,
                *numbers,
                read=json.loads(texts.get("read", json.dumps(known))) is True,
            )
        except (OSError, KeyError, TypeError, ValueError, RecursionError):
            return None


def _read_array(path: Path, about: TensorHeader, known_n: np.ndarray | None) -> np.ndarray:
    """An array of a file, or ``known_n`` if it is the same."""
    dtype, count = np.dtype(_TYPES[about.dtype]), math.prod(about.shape)
    alike = known_n is not None and (known_n.dtype, known_n.shape) == (dtype, about.shape)
    if known_n is not None and alike and _holds(path, about.begin, known_n):
        return known_n
    return np.fromfile(path, dtype, count, offset=about.begin).reshape(about.shape)


def _read_names(path: Path, about: TensorHeader, known: NameList | None) -> NameList:
    """The names in a file, or ``known`` if they are these."""
    (size,) = about.shape
    if known is not None and known.text.size == size and _holds(path, about.begin, known.text):
        return known
    text = np.zeros(size + 1, np.uint8)
    text[:-1] = np.fromfile(path, np.uint8, size, offset=about.begin)
    return NameList(text)


def _holds(path: Path, begin: int, array: np.ndarray) -> bool:
    """Whether a file has the content of an array there; memory holds a part of it at a time."""
    with path.open("rb") as file:
        file.seek(begin)
        parts = (array[i : i + _PART].tobytes() for i in range(0, len(array), _PART))
        return all(file.read(len(part)) == part for part in parts)


def check_data(
    folder: Path,
    saved: Mapping[str, object],
    settings: Mapping[str, object],
    now: DataRecord | None,
) -> None:
    """Raises InputError, naming what differs, unless a checkpoint was trained on this data.

    folder: the checkpoints of a stage. saved, settings: those of the checkpoint and of this run;
    their "data" and "tokens" say what it is trained on. now: the image files, or those that the
    tokens were made from; None for the digits.
    """
    problem = _other_data(saved, settings)
    before = DataRecord.read_file(folder, now)
    if before is not None and now is not None and not problem:
        if before.settings == saved.get("data"):
            problem = _other_files(before, now) or _rewritten(before, now)
        elif saved.get("tokens") != settings["tokens"]:
            problem = _other_files(before, now)
    if not problem and any(saved.get(key) != settings[key] for key in ("data", "tokens")):
        problem = "the images were others, or their tokens (which ones is not on record)"
    if problem:
        raise InputError(
            f"{quoted(folder)}: was trained on other data: {problem}; expected the same images "
            "under the same names (put them back, or --no-resume starts from the beginning, or "
            "another --out starts a new run)"
        )


def _other_data(saved: Mapping[str, object], settings: Mapping[str, object]) -> str | None:
    """How the kind of data or the classes differ; None if they do not."""
    kinds = [_kind(saved), _kind(settings)]
    if kinds[0] != kinds[1]:
        return f"{kinds[0]} then, {kinds[1]} now"
    before, after = (_classes(s) for s in (saved, settings))
    differ = zip(gone_and_new(sorted(before), sorted(after)), ("is gone", "is new"), strict=True)
    parts = [f"class {first_of(names)} {is_}" for names, is_ in differ if names]
    if not parts and before != after:
        parts = [f"its classes were in the order {first_of(before)}, now {first_of(after)}"]
    return " and ".join(parts) or None


def _classes(settings: Mapping[str, Any]) -> list[str]:
    found = settings["data"] or settings["tokens"]
    return found["classes"] if found else []


def _kind(settings: Mapping[str, object]) -> str:
    data, tokens = settings.get("data"), settings.get("tokens")
    if isinstance(data, str) or isinstance(tokens, str):
        return "what an earlier version, which did not note the images, found in this path"
    return "images" if data else "tokens" if tokens else "the digits"


def _other_files(before: DataRecord, now: DataRecord) -> str | None:
    """Which files were added, removed or changed; None if none were."""
    if before.names != now.names:
        lists = ((now.names, before.names, "new"), (before.names, now.names, "missing"))
        parts = []
        for names, others, what in lists:
            places_n = names.missing_in(others)
            if places_n.size:
                first = first_of([names[i] for i in places_n[:4]])
                parts.append(f"{places_n.size} {what} image(s): {first}")
        return " and ".join(parts) or "they are in another order"
    changed_n = before.hashes_n != now.hashes_n
    if not (before.read and now.read):
        changed_n &= (before.hashes_n != 0) & (now.hashes_n != 0)
        changed_n |= before.sizes_n != now.sizes_n
    changed = [now.names[i] for i in np.flatnonzero(changed_n)]
    return f"{len(changed)} image(s) changed: {first_of(changed)}" if changed else None


def _rewritten(before: DataRecord, now: DataRecord) -> str | None:
    """Which files of unknown content were rewritten; None if none were, or all were."""
    if now.read:
        return None
    newer_n = before.times_n != now.times_n
    if newer_n.all():
        log.info(
            "all image files have other times than before: taken for a copy of them; those that "
            "were read before are compared when read again"
        )
    elif newer_n.any():
        unknown_n = newer_n & (before.hashes_n == 0)
        newer = [now.names[i] for i in np.flatnonzero(unknown_n)]
        if newer:
            return (
                f"{len(newer)} image(s) were rewritten with the same size: {first_of(newer)} (if "
                "they are the same images, touch all of the folder's: that counts as a copy)"
            )
        log.info("%d image file(s) were rewritten, and are compared when read", newer_n.sum())
    return None
