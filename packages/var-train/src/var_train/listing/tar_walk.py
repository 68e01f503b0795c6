"""The members of a tar archive, in place: ustar, GNU and pax headers, nothing else.

An archive may come from anyone: every number of it is checked against the file before it is used.
"""

import os
from collections.abc import Iterator
from typing import NamedTuple

from var_tokenizer.common import InputError, quoted

BLOCK = 512  # bytes
_WINDOW = 4096  # bytes that are read at once: mostly a label and the header after it
_LONGEST = 2**20  # bytes of an extended header
_REGULAR = b"0\0" + b"7"
_LINKS = b"12"
_WITHOUT_DATA = b"123456"
_HEADERS = b"xXgLK"  # of the member after them
_GLOBAL, _LONG_NAME, _LONG_LINK, _SPARSE = b"gLKS"


class Member(NamedTuple):
    """A file or a link of an archive; ``size`` bytes of content begin at ``offset``."""

    name: bytes
    offset: int
    size: int
    is_link: bool


class OpenArchive:
    """Reads an archive of ``size`` bytes through a small window."""

    def __init__(self, name: str | os.PathLike[str], descriptor: int, size: int) -> None:
        self.name, self.size = name, size
        self._descriptor, self._begin, self._window = descriptor, 0, b""

    def read(self, begin: int, count: int) -> bytes:
        """``count`` bytes, or fewer at the end. Raises InputError if the disk fails."""
        skip = begin - self._begin
        if not 0 <= skip <= len(self._window) - count:
            try:
                self._window = os.pread(self._descriptor, max(count, _WINDOW), begin)
            except OSError as error:
                raise InputError(
                    f"{quoted(self.name)}: cannot read it: {error.strerror}"
                ) from error
            self._begin, skip = begin, 0
        return self._window[skip : skip + count]

    def members(self) -> Iterator[Member]:
        """Its files and links in order; folders and devices are left out.

        Raises InputError that names archive and member for what is damaged, truncated or sparse.
        """
        position = 0
        name, size = None, None  # as an extended header gives them for the member after it
        while True:
            block = self.read(position, BLOCK)
            if len(block) < BLOCK:
                raise self._refusal("ends at byte", position, "its end mark: it is cut short")
            if block.count(0) == BLOCK:
                if name is not None or size is not None:
                    raise self._refusal("ends at byte", position, "the member of a long name")
                self._check_end(position)
                return
            kind = block[156]
            content = _number(block[124:136])
            if _number(block[148:156]) != _sum(block) or content is None:
                expected = "an uncompressed tar archive" if position == 0 else "a whole archive"
                raise self._refusal("holds no tar header at byte", position, expected)
            begin = position + BLOCK
            own = name if name is not None else _name_of(block)
            if kind in _WITHOUT_DATA:
                content = 0
            elif size is not None and kind not in _HEADERS:
                content = size
            if content > self.size - begin:
                raise InputError(
                    f"{quoted(self.name)}: member {quoted(own)} is cut short: "
                    f"{max(0, self.size - begin)} of its {content} bytes are there"
                )
            position = begin + -(-content // BLOCK) * BLOCK
            if kind in _HEADERS:
                text = self._extended(own, begin, content)
                if kind == _LONG_NAME:
                    name = name if name is not None else text.partition(b"\0")[0]
                elif kind != _LONG_LINK:
                    given_name, given_size = self._records(own, text)
                    if kind == _GLOBAL and (given_name, given_size) != (None, None):
                        raise self._refusal("has a name or size for all members at byte", begin)
                    name = name if name is not None else given_name
                    size = size if size is not None else given_size
                continue
            if kind == _SPARSE:
                raise self._sparse(own)
            name, size = None, None
            if b"\0" in own:
                raise InputError(
                    f"{quoted(self.name)}: member {quoted(own)} has a zero in its name; expected "
                    "none"
                )
            if kind in _LINKS or (kind in _REGULAR and not own.endswith(b"/")):
                yield Member(own.removeprefix(b"./"), begin, content, kind in _LINKS)

    def _extended(self, member: bytes, begin: int, size: int) -> bytes:
        if size > _LONGEST:
            raise InputError(
                f"{quoted(self.name)}: member {quoted(member)} has a header of {size} bytes; "
                f"expected at most {_LONGEST}"
            )
        return self.read(begin, size)

    def _records(self, member: bytes, text: bytes) -> tuple[bytes | None, int | None]:
        """Name and size that the records of a pax header give."""
        name, size = None, None
        text, begin = text.rstrip(b"\0"), 0
        while begin < len(text):
            digits, _, _ = text[begin : begin + 20].partition(b" ")
            length = int(digits) if digits.isdigit() else 0
            record, begin = text[begin : begin + length], begin + length
            key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
            if not record.endswith(b"\n") or not equals or len(record) < length:
                raise InputError(
                    f"{quoted(self.name)}: the pax header of {quoted(member)} is damaged"
                )
            if key.startswith(b"GNU.sparse."):
                raise self._sparse(member)
            if key == b"path":
                name = value
            elif key == b"size":
                if not value.isdigit() or len(value) > 19:
                    raise InputError(
                        f"{quoted(self.name)}: the size of {quoted(member)} is "
                        f"{quoted(value[:40])}; expected a number of bytes"
                    )
                size = int(value)
        return name, size

    def _check_end(self, position: int) -> None:
        """Raises InputError for more than zeros after the end mark."""
        while part := self.read(position, _LONGEST):
            if part.count(0) < len(part):
                raise self._refusal(
                    "goes on after its end mark, at byte", position, "one archive in a file"
                )
            position += len(part)

    def _sparse(self, member: bytes) -> InputError:
        return InputError(
            f"{quoted(self.name)}: member {quoted(member)} is sparse; expected plain files (tar "
            "without --sparse)"
        )

    def _refusal(self, what: str, position: int, expected: str = "none") -> InputError:
        return InputError(f"{quoted(self.name)}: {what} {position}; expected {expected}")


def _sum(block: bytes) -> int:
    return sum(block) - sum(block[148:156]) + 8 * ord(" ")


def _number(field: bytes) -> int | None:
    """A number of a header: octal digits, or big-endian behind 0x80; None for anything else."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip(b" ")
    if digits.isdigit() and not digits.strip(b"01234567"):
        return int(digits, 8)
    return None if digits else 0


def _name_of(block: bytes) -> bytes:
    name = block[:100].partition(b"\0")[0]
    prefix = block[345:500].partition(b"\0")[0] if block[257:263] == b"ustar\0" else b""
    return prefix + b"/" + name if prefix else name
