"""Compiled graphs that the next process takes from a folder of the user's, in place of compiling.

MindSpore's cache knows a graph by its number in the order of compilation alone: it would give one
model's graphs to another. So there is a folder for each sequence of graphs, named by all that the
sequence depends on, and none but a command's own process, which compiles nothing before, uses it.
"""

import hashlib
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from shutil import rmtree

import mindspore as ms
from mindspore.graph import api
from var_tokenizer.common import InputError, check_private, kernels_in_use

log = logging.getLogger("var_transformer")

_PACKAGES = ("var_tokenizer", "var_transformer")
_KEPT = 16  # folders; a new one takes the place of the one that was not used for longest
_DAY = 24 * 60 * 60  # seconds


@contextmanager
def graph_cache(**settings: object) -> Iterator[None]:
    """Inside the block, graphs are taken from the folder of ``settings``, or are left there.

    settings: whatever decides which graphs the block compiles, in which order; as JSON has it, or
    ``str``. The same block must compile all of them or none. A folder appears whole or not at
    all. Where none can be written, where others could write to it, and where Python was not
    started as a command of this package, graphs are compiled as without a cache.
    """
    root = _root() if _is_command() else None
    if root is None:
        yield
        return
    folder, temporary = root / _name(settings), None
    try:
        if folder.is_dir():
            check_private(folder)
            with suppress(OSError):
                os.utime(folder)
        else:
            _remove_old(root)
            temporary = Path(tempfile.mkdtemp(dir=root, prefix="."))
    except InputError as error:
        log.warning("%s; graphs are not cached", error)
        yield
        return
    except OSError:
        yield
        return
    # MindSpore reads the script's imports, and fails where that was started by `python -m`; what
    # graphs depend on is in the folder's name
    api.entry_script_path = __file__
    ms.set_context(enable_compile_cache=True, compile_cache_path=str(temporary or folder))
    try:
        yield
        if temporary is not None and any(temporary.rglob("*.mindir")):
            with suppress(OSError):  # another process was first
                temporary.rename(folder)
    finally:
        ms.set_context(enable_compile_cache=False)
        if temporary is not None:
            rmtree(temporary, ignore_errors=True)


def _root() -> Path | None:
    """The folder of all graphs, made if need be; None where it cannot be, or is not safe to use."""
    try:
        given = Path(os.environ.get("XDG_CACHE_HOME", ""))  # a relative one is no folder, it says
        root = (given if given.is_absolute() else Path.home() / ".cache") / "var-mindspore"
        root.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            root.mkdir(mode=0o700)
        check_private(root)
    except InputError as error:
        log.warning("%s; graphs are not cached", error)
        return None
    except (OSError, RuntimeError):  # RuntimeError: the user has no home
        return None
    return root


def _remove_old(root: Path) -> None:
    """Makes room for a new folder, and removes what processes that were killed left."""
    used = {path: path.stat().st_mtime for path in root.iterdir()}
    finished = sorted((p for p in used if p.name[0] != "."), key=used.get, reverse=True)
    left = [p for p in used if p.name[0] == "." and used[p] < time.time() - _DAY]
    for path in finished[_KEPT - 1 :] + left:
        rmtree(path, ignore_errors=True)


def _is_command() -> bool:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec is not None and spec.name.startswith("var_transformer.")


def _name(settings: dict[str, object]) -> str:
    """Of the settings, the device, MindSpore, and both packages' files and usable kernels."""
    known = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    known.update(f"{kernels_in_use(_PACKAGES)} ".encode())
    known.update(f"{version('mindspore')} {ms.get_context('device_target')}".encode())
    for package in _PACKAGES:
        folder = Path(find_spec(package).origin).parent
        for path in sorted(p for p in folder.rglob("*") if p.suffix in (".py", ".so")):
            known.update(str(path).encode())  # kernels are called by their paths
            known.update(path.read_bytes())
    return known.hexdigest()[:32]
