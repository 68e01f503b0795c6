"""The three containers, chosen by suffix."""

from collections.abc import Callable, Mapping
from pathlib import Path

from var_tokenizer import InputError

from var_convert.ckpt_file import read_ckpt, write_ckpt
from var_convert.pth_file import read_pth, write_pth
from var_convert.safetensors_file import read_safetensors, write_safetensors
from var_convert.weights import Entry, Weights

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


def check_suffix(path: Path) -> str:
    """The suffix of ``path``; raises InputError where it names none of the three formats."""
    if path.suffix not in READERS:
        raise InputError(f"{path}: suffix {path.suffix!r}; expected one of {', '.join(READERS)}")
    return path.suffix


def read_weights(path: Path) -> list[Weights]:
    """The models of a file, tensors not yet read.

    Raises InputError for a file that is missing, empty, damaged or of an unknown suffix.
    """
    reader = READERS[check_suffix(path)]
    if not path.is_file():
        raise InputError(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path}: the file is empty")
        with path.open("rb"):
            pass
    except OSError as error:
        raise InputError(f"{path}: cannot read: {error.strerror}") from error
    return reader(path)
