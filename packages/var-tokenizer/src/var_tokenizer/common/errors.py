"""The one exception for bad input, and how its message shows a name."""

import os

_LONGEST = 1000  # characters of a name to show


class InputError(ValueError):
    """A file, field or argument that the user gave is unusable.

    The message names it, its value and what was expected. Commands print the message and
    exit with 2. Callers of the library may catch it as a ``ValueError``.
    """


def quoted(name: str | bytes | os.PathLike[str]) -> str:
    """A name from a file or file system, made safe for one line of a terminal or log.

    Escapes what does not print: control characters and escape sequences, newlines, characters
    that change the direction of text, and bytes that are not UTF-8 (``caf\\xe9.png``). Leaves
    everything else as it is, and cuts the name at 1000 characters.
    """
    text = os.fsdecode(name)
    shown = "".join(c if c.isprintable() else _escaped(c) for c in text[:_LONGEST])
    return shown + ("..." if len(text) > _LONGEST else "")


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # how Python holds a byte of a file name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
