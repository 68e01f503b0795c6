"""Which format a file is in, and the reader and writer of each."""

from collections.abc import Callable, Mapping
from pathlib import Path

from var_tokenizer.common import InputError, format_of, quoted

from var_convert.formats.ckpt import read_ckpt, write_ckpt
from var_convert.formats.pth import read_pth, write_pth
from var_convert.formats.safetensors import read_safetensors, write_safetensors
from var_convert.formats.weights import Entry, Weights

Writer = Callable[[Path, Mapping[str, Entry], Mapping[str, str]], None]

READERS: dict[str, Callable[[Path], list[Weights]]] = {
    ".pth": read_pth,
    ".safetensors": read_safetensors,
    ".ckpt": read_ckpt,
}
WRITERS: dict[str, Writer] = {
    ".pth": write_pth,
    ".safetensors": write_safetensors,
    ".ckpt": write_ckpt,
}


_SUFFIXES = {"PyTorch": ".pth", "MindSpore": ".ckpt", "safetensors": ".safetensors"}


def check_suffix(path: Path) -> None:
    """Raises InputError unless the suffix of ``path`` is that of one of the three formats."""
    if path.suffix not in READERS:
        raise InputError(
            f"{quoted(path)}: suffix {path.suffix!r}; expected one of {', '.join(READERS)}"
        )


def read_weights(path: Path) -> list[Weights]:
    """The models of a file, tensors not yet read.

    For any other suffix (``.pt``, ``.bin``), the content decides.

    Raises InputError for a file that is missing, empty, damaged, of an unknown format, or of
    a different one from what its suffix says.
    """
    shown = quoted(path)
    if not path.is_file():
        raise InputError(f"{shown}: {'not a file' if path.exists() else 'no such file'}")
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{shown}: the file is empty")
        found = format_of(path)
    except OSError as error:
        raise InputError(f"{shown}: cannot read: {error.strerror}") from error
    suffix = path.suffix if found is None else _SUFFIXES[found]
    # MindSpore reads no other name
    if path.suffix != suffix and (path.suffix in READERS or found == "MindSpore"):
        raise InputError(f"{shown}: a {found} file by its content; expected the suffix {suffix}")
    if suffix not in READERS:
        raise InputError(
            f"{shown}: neither PyTorch's, MindSpore's nor safetensors by its content; expected "
            f"one of {', '.join(READERS)}"
        )
    return READERS[suffix](path)
