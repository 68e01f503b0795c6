"""Which format a file is in, and the reader and writer of each."""

from collections.abc import Callable, Mapping
from pathlib import Path

from var_tokenizer.common import InputError, format_of, quoted

from var_convert.formats.ckpt import read_ckpt, write_ckpt
from var_convert.formats.folders import SINGLE, read_folder, read_index, with_config
from var_convert.formats.names import INDEX, format_of_name
from var_convert.formats.pth import read_pth, write_pth
from var_convert.formats.safetensors import read_safetensors, write_safetensors
from var_convert.formats.weights import Entry, Weights
from var_convert.kinds import is_native

LFS_POINTER = b"version https://git-lfs"  # what a clone without Git LFS has instead of weights

Writer = Callable[[Path, Mapping[str, Entry], Mapping[str, str]], None]

READERS: dict[str, Callable[[Path], list[Weights]]] = {
    "PyTorch": read_pth,
    "MindSpore": read_ckpt,
    "safetensors": read_safetensors,
}
WRITERS: dict[str, Writer] = {
    "PyTorch": write_pth,
    "MindSpore": write_ckpt,
    "safetensors": write_safetensors,
}


def is_pytorch(path: Path) -> bool:
    """Whether a file is PyTorch's, by its content."""
    return path.is_file() and format_of(path) == "PyTorch"


def read_weights(path: Path) -> list[Weights]:
    """The state dicts of a file, an index or a folder, tensors not yet read.

    Raises InputError for what is missing, empty, damaged or of an unknown format.
    """
    try:
        is_folder = path.is_dir()
    except OSError as error:  # a name longer than the system's
        raise InputError(f"{quoted(path)}: cannot read: {error.strerror}") from error
    if is_folder:
        return read_folder(path, _read_file)
    read = read_index(path, _read_file) if path.name.endswith(INDEX) else _read_file(path)
    if all(is_native(weights) for weights in read):
        return read
    return with_config(read, path.parent, path.name in SINGLE)


def _read_file(path: Path) -> list[Weights]:
    """The state dicts of one file. Its content decides the format."""
    shown = quoted(path)
    try:
        if not path.is_file():
            raise InputError(f"{shown}: {'not a file' if path.exists() else 'no such file'}")
        if path.stat().st_size == 0:
            raise InputError(f"{shown}: the file is empty")
        with path.open("rb") as file:
            if file.read(len(LFS_POINTER)) == LFS_POINTER:
                raise InputError(
                    f"{shown}: a pointer of Git LFS; expected the weights, which git lfs pull "
                    "brings in its place"
                )
        found = format_of(path) or format_of_name(path)
    except OSError as error:
        raise InputError(f"{shown}: cannot read: {error.strerror}") from error
    if found is None:
        raise InputError(
            f"{shown}: neither PyTorch's, MindSpore's nor safetensors by its content; expected "
            "weights in one of these formats"
        )
    return READERS[found](path)
