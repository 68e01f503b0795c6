"""File names: which format a target's suffix means, and a suffix that a library reads."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

INDEX = ".index.json"  # of weights in shards
SUFFIXES = {
    "PyTorch": (".pth", ".pt", ".bin", ".pth.tar"),
    "MindSpore": (".ckpt",),
    "safetensors": (".safetensors",),
}


def format_of_name(path: Path) -> str | None:
    """The format that a file of this name is written in; None if the name says none."""
    for name, suffixes in SUFFIXES.items():
        if path.name.lower().endswith(suffixes):
            return name
    return None


def layout_of_target(path: Path) -> str | None:
    """What is written there: one of SUFFIXES, "index" or "folder"; None if the name says none."""
    if path.name.endswith(INDEX):
        return "index"
    return format_of_name(path) or ("folder" if not path.suffix or path.is_dir() else None)


@contextmanager
def under_suffix(path: Path, suffix: str) -> Iterator[Path]:
    """The file under a name that ends in ``suffix``, for a library that goes by it."""
    if path.suffix == suffix:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="var-convert-") as folder:
        link = Path(folder) / f"model{suffix}"
        link.symlink_to(path.absolute())
        yield link
