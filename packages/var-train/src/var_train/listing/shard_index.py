"""Where the images of a shard lie, and their labels: the layout that webdataset made usual.

A shard is a tar archive. Its members that follow one another and have the same key, which is the
path up to the first dot of the base name, are one sample. A sample has an image, which is a member
with a suffix of ``PICTURE_SUFFIXES``, and a label: ``.cls``, an integer as text, or ``.json``, an
object whose "label" or "cls" is one. Other members and hidden ones are passed over.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from var_tokenizer.common import PICTURE_SUFFIXES, InputError, open_regular, quoted, unique_fields

from var_train.listing.name_list import NameList
from var_train.listing.tar_walk import Member, OpenArchive

NO_LABEL = -1
_TYPES = {"offsets_n": "i8", "sizes_n": "i8", "labels_n": "i4"}  # of an index, beside the names
_FIELDS = ("label", "cls")  # of .json
_LONGEST_CLS, _LONGEST_JSON = 32, 2**20  # bytes
_KEY = re.compile(rb"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)
_SUFFIXES = frozenset(suffix[1:].encode() for suffix in PICTURE_SUFFIXES)


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """The N images of a shard, in its order."""

    names: NameList
    """Of the members."""
    offsets_n: np.ndarray
    """(N,) int64, where the content begins, in bytes."""
    sizes_n: np.ndarray
    """(N,) int64, bytes."""
    labels_n: np.ndarray
    """(N,) int32, from 0; NO_LABEL where there is none."""

    def __len__(self) -> int:
        return len(self.labels_n)

    def arrays(self) -> dict[str, np.ndarray]:
        """What ``of_arrays`` makes an index of."""
        return {name: getattr(self, name) for name in _TYPES} | {"names": self.names.terminated}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "ShardIndex | None":
        """The index that has these arrays; None if they are none's."""
        types = {name: (array.dtype, array.ndim) for name, array in arrays.items()}
        if types != {name: (np.dtype(t), 1) for name, t in (_TYPES | {"names": "u1"}).items()}:
            return None
        names = NameList(arrays["names"])
        index = cls(names, *(arrays[name] for name in _TYPES))
        return index if {len(arrays[name]) for name in _TYPES} == {len(names)} else None


@dataclass
class _Sample:
    """What has been seen of a sample so far."""

    key: bytes
    image: Member | None = None
    labels: dict[bytes, Member] = field(default_factory=dict)


def index_shard(path: Path) -> ShardIndex:
    """Reads the headers and labels of a shard, and none of its images.

    Raises InputError that names shard and member for a damaged or truncated archive; for a label
    that is no integer from 0 to 2**31 - 2, or has no image; for two images or labels of one kind
    in a sample, a link in an image's place, a key that occurs twice, and a shard without images.
    """
    names: list[bytes] = []
    numbers: list[tuple[int, int, int]] = []
    keys: set[bytes] = set()
    sample = _Sample(b"")
    with open_regular(path) as file:
        archive = OpenArchive(path, file.fileno(), os.fstat(file.fileno()).st_size)
        for member in archive.members():
            match = _KEY.fullmatch(member.name)
            if match is None or _is_hidden(member.name):
                continue
            key, suffix = match[1], match[2].lower()
            if key != sample.key:
                _finish(path, archive, sample, names, numbers)
                if key in keys:
                    expected = "all members of a key in a row (tar --sort=name), and no key twice"
                    raise _refusal(path, member, "is of a sample that has gone by", expected)
                keys.add(key)
                sample = _Sample(key)
            _add(path, sample, member, suffix)
        _finish(path, archive, sample, names, numbers)
    if not names:
        raise InputError(f"{quoted(path)}: no image; expected .jpg or .png members beside .cls")
    offsets_n, sizes_n, labels_n = np.array(numbers, np.int64).reshape(-1, 3).T
    text = NameList(b"".join(names))
    return ShardIndex(text, offsets_n.copy(), sizes_n.copy(), labels_n.astype(np.int32))


def _add(path: Path, sample: _Sample, member: Member, suffix: bytes) -> None:
    if suffix in _SUFFIXES:
        if sample.image is not None:
            raise _refusal(path, member, "is a second image of its sample", "one")
        if member.is_link:
            expected = "the image itself (tar --hard-dereference)"
            raise _refusal(path, member, "is a link", expected)
        sample.image = member
    elif suffix in (b"cls", b"json") and not member.is_link:
        if suffix in sample.labels:
            raise _refusal(path, member, "is there twice", "one label of a sample")
        sample.labels[suffix] = member


def _finish(
    path: Path,
    archive: OpenArchive,
    sample: _Sample,
    names: list[bytes],
    numbers: list[tuple[int, int, int]],
) -> None:
    """Adds a sample that has been seen whole."""
    cls, described = sample.labels.get(b"cls"), sample.labels.get(b"json")
    if sample.image is None:
        if cls is not None:
            raise _refusal(path, cls, "is a label without an image", "one beside it")
        return
    label = NO_LABEL
    if cls is not None:
        label = _label_of_text(path, archive, cls)
    elif described is not None:
        label = _label_of_json(path, archive, described)
    names.append(sample.image.name + b"\0")
    numbers.append((sample.image.offset, sample.image.size, label))


def _label_of_text(path: Path, archive: OpenArchive, member: Member) -> int:
    if member.size > _LONGEST_CLS:
        raise _refusal(path, member, f"has {member.size} bytes", "an integer as text")
    text = archive.read(member.offset, member.size)
    digits = text.strip()
    return _checked(path, member, text, int(digits) if digits.isdigit() else None)


def _label_of_json(path: Path, archive: OpenArchive, member: Member) -> int:
    """The label of a .json; NO_LABEL if it has none."""
    if member.size > _LONGEST_JSON:
        raise _refusal(path, member, f"has {member.size} bytes", f"at most {_LONGEST_JSON}")
    try:
        fields = json.loads(
            archive.read(member.offset, member.size), object_pairs_hook=unique_fields
        )
    except (ValueError, RecursionError) as error:
        raise _refusal(
            path, member, f"is no JSON ({quoted(str(error)[:80])})", "an object"
        ) from error
    found = [fields[name] for name in _FIELDS if name in fields] if isinstance(fields, dict) else []
    if not found:
        return NO_LABEL
    value = found[0] if isinstance(found[0], int) and not isinstance(found[0], bool) else None
    return _checked(path, member, str(found[0]).encode("utf-8", "backslashreplace"), value)


def _checked(path: Path, member: Member, text: bytes, value: int | None) -> int:
    if value is None or not 0 <= value < 2**31 - 1:
        found = quoted(text[:40]) or "nothing"
        raise _refusal(path, member, f"holds {found}", "an integer from 0 to 2**31 - 2")
    return value


def _is_hidden(name: bytes) -> bool:
    return name.startswith((b".", b"__MACOSX/")) or b"/." in name


def _refusal(path: Path, member: Member, what: str, expected: str) -> InputError:
    return InputError(f"{quoted(path)}: member {quoted(member.name)} {what}; expected {expected}")
