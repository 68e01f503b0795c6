"""Parses classes as users write them: numbers and names, lists and ranges, all and none."""

import os
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from var_tokenizer.common import InputError, quoted

from var_transformer.model.checks import check_class_names
from var_transformer.stored.stored_transformer import AnyTransformer

ALL, NONE = "all", "none"

_WORDNET = re.compile(r"^(?P<id>n\d{8})[\s,:]+(?P<names>\S.*)$", re.ASCII)
_ID = re.compile(r"n\d{8}", re.ASCII)
_NUMBER = re.compile(r"\d{1,9}", re.ASCII)
_RANGE = re.compile(r"(\d{1,9})\s*-\s*(\d{1,9})", re.ASCII)
_LARGEST_FILE = 2**24  # bytes
_SHOWN = 40  # characters of a name in a message


def read_class_names(path: str | os.PathLike[str], num_classes: int) -> tuple[str, ...]:
    """The lines of a UTF-8 file: the n-th (from 0) names class n, with synonyms between commas.

    A leading WordNet id (``n01440764 tench, Tinca tinca``) becomes the last synonym. A byte-order
    mark and empty lines at the end are ignored.

    Raises InputError for a file that is missing, not text, or has another number of names.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(_LARGEST_FILE + 1)
        if len(content) > _LARGEST_FILE:
            raise InputError(f"{quoted(path)}: too large; expected at most {_LARGEST_FILE} bytes")
        text = content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{quoted(path)}: not a readable text file: {error}") from error
    lines = [line.strip() for line in text.rstrip().split("\n")]
    names = [_WORDNET.sub(r"\g<names>, \g<id>", line) for line in lines]
    if len(names) != num_classes:
        raise InputError(
            f"{quoted(path)}: holds {len(names)} names; expected {num_classes}, the classes"
        )
    try:
        return check_class_names(names, num_classes)
    except InputError as error:
        raise InputError(f"{quoted(path)}: {error}") from error


def names_of(model: AnyTransformer, path: str | os.PathLike[str] | None) -> tuple[str, ...] | None:
    """The names of the model's classes: those in the file, or else the model's own.

    Raises InputError like ``read_class_names``, and if the file has the WordNet ids of the
    model's classes in another order.
    """
    if path is None:
        return model.class_names
    names = read_class_names(path, model.config.num_classes)
    for n, (ours, theirs) in enumerate(zip(model.class_names or names, names, strict=True)):
        ids = [{s for s in _synonyms(name) if _ID.fullmatch(s)} for name in (ours, theirs)]
        if all(ids) and ids[0] != ids[1]:
            raise InputError(
                f"{quoted(path)}: line {n + 1} is {_shown(theirs)}; expected {_shown(ours)}, "
                "the model's own name of that class"
            )
    return names


def class_number(text: str, num_classes: int, names: Sequence[str] | None) -> int:
    """The class that ``text`` means; ``num_classes`` for "none", which is no class.

    text: a name, one of its synonyms, or a number. Names come first: if the classes are named
    0, 1, 2 and 10, the text "10" means the last one, number 3. Among names that differ only in
    case, the one spelled like ``text`` wins.

    Raises InputError for an unknown class, or a name that several classes share.
    """
    text = text.strip()
    found = _named(text, names)
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"class {_shown(text)} names {found}; expected one of these numbers")
    if _NUMBER.fullmatch(text) and int(text) < num_classes:
        return int(text)
    if text.lower() == NONE:
        return num_classes
    what = "" if names is None else ", the name of a class"
    raise InputError(
        f"class is {_shown(text)}; expected 0 to {num_classes - 1}{what} or {NONE!r}, for no class"
    )


def class_numbers(text: str, num_classes: int, names: Sequence[str] | None) -> list[int]:
    """The classes in a comma-separated list, such as "cat,3,10-19" or "all", in its order.

    Each entry is what ``class_number`` takes, a range of two of them, or "all". A name with
    commas may be written in full.

    Raises InputError like ``class_number``, and for a range that runs backwards.
    """
    parts = text.split(",")
    longest = 1 + max((name.count(",") for name in names or ()), default=0)
    classes: list[int] = []
    while parts:
        for count in range(min(longest, len(parts)), 0, -1):
            found = _named(",".join(parts[:count]).strip(), names)
            if len(found) == 1:
                classes += found
                break
        else:
            count = 1
            classes += _several(parts[0].strip(), num_classes, names)
        parts = parts[count:]
    return classes


def number_ranges(text: str) -> list[range]:
    """The numbers in a comma-separated list, such as "57,60-63", as ranges in its order.

    Raises InputError for anything else, and for a range that runs backwards.
    """
    ranges = []
    for part in text.split(","):
        ends = _RANGE.fullmatch(part.strip()) or _NUMBER.fullmatch(part.strip())
        if ends is None:
            raise InputError(f"numbers are {_shown(text)}; expected numbers such as 57 or 57,60-63")
        first, last = map(int, ends.groups() or (ends[0], ends[0]))
        if first > last:
            raise InputError(f"numbers are {_shown(text)}; expected the smaller number first")
        ranges.append(range(first, last + 1))
    return ranges


def other_numbers(classes: Iterable[int], names: Sequence[str] | None) -> str:
    """A note on classes whose names are numbers, but not their own; "" if there are none."""
    told = [
        f"{quoted(names[n])} is number {n}"
        for n in dict.fromkeys(classes)
        if names and n < len(names) and _NUMBER.fullmatch(names[n]) and int(names[n]) != n
    ]
    return ", ".join(told[:10]) + (", ..." if len(told) > 10 else "")


def _several(text: str, num_classes: int, names: Sequence[str] | None) -> Iterable[int]:
    if text.lower() == ALL:
        return range(num_classes)
    ends = _RANGE.fullmatch(text)
    if ends is None:
        return [class_number(text, num_classes, names)]
    first, last = (class_number(end, num_classes, names) for end in ends.groups())
    if first > last:
        raise InputError(f"classes are {_shown(text)}; expected the smaller number first")
    return range(first, last + 1)


def _named(text: str, names: Sequence[str] | None) -> list[int]:
    """The classes that have this name or synonym."""
    if not text or names is None:
        return []
    as_written, in_lower_case = _index(tuple(names))
    return as_written.get(text) or in_lower_case.get(text.lower()) or []


@lru_cache(maxsize=4)
def _index(names: tuple[str, ...]) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """The classes of every name and synonym, as written and in lower case."""
    tables: tuple[dict[str, list[int]], dict[str, list[int]]] = ({}, {})
    for n, name in enumerate(names):
        for table, text in zip(tables, (name, name.lower()), strict=True):
            for synonym in _synonyms(text):
                table.setdefault(synonym, []).append(n)
    return tables


def _synonyms(name: str) -> set[str]:
    """The whole name, the parts between its commas, and everything before each comma."""
    parts = {name, *(part.strip() for part in name.split(","))} - {""}
    parts |= {name[: comma.start()].strip() for comma in re.finditer(",", name)}
    return parts | {str(int(part)) for part in parts if _NUMBER.fullmatch(part)}  # 007 also means 7


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
