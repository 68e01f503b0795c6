"""Weights in other formats: recognized by content, and the command that converts them."""

import os
import shlex
from pathlib import Path
from typing import Literal

from var_tokenizer.common.errors import quoted

Format = Literal["PyTorch", "MindSpore", "safetensors"]

_PICKLES = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # as PyTorch wrote before 1.6


def format_of(path: str | os.PathLike[str]) -> Format | None:
    """The format of a file of weights, from its first bytes; None if it is unknown.

    Nothing is unpickled. Raises OSError if the file cannot be read.
    """
    with Path(path).open("rb") as file:
        head, size = file.read(4096), os.fstat(file.fileno()).st_size
    if head.startswith(b"PK\x03\x04"):
        member = head[30 : 30 + int.from_bytes(head[26:28], "little")]
        return "PyTorch" if member.endswith(b"data.pkl") else None
    # before pickles: a header of 640 bytes begins with \x80\x02, too
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < size:
        return "safetensors"
    if head.startswith(_PICKLES):
        return "PyTorch"
    return "MindSpore" if _begins_like_mindspore(head) else None


def _begins_like_mindspore(head: bytes) -> bool:
    """Whether this is protobuf as MindSpore writes it: entries (field 1) that begin with a name
    (field 1 of each)."""
    place = 0
    for _ in range(2):
        if head[place : place + 1] != b"\n":
            return False
        place, length = place + 1, 0
        for shift in range(0, 70, 7):
            byte = head[place] if place < len(head) else 0
            place, length = place + 1, length | (byte & 0x7F) << shift
            if byte < 0x80:
                break
    name = head[place : place + length]
    return 0 < length == len(name) and name.isascii() and name.decode("ascii").isprintable()


def conversion(path: str | os.PathLike[str], kind: str) -> str:
    """The command that converts a file of another format to a native one of ``kind``."""
    source = Path(path)
    target = source.with_suffix(".safetensors")
    if target.exists():
        target = source.with_name(f"{source.stem}-native.safetensors")
    return f"var-convert {_word(source)} {_word(target)} --only {kind}"


def _word(path: Path) -> str:
    return shlex.quote(quoted(path))
