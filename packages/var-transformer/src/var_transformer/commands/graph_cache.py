"""A cache of compiled graphs in the user's cache folder, for the next process; evicts old ones.

MindSpore's own cache identifies a graph only by its number in the order of compilation: it would
give one model's graphs to another. So each sequence of graphs has a folder, named after everything
that the sequence depends on. Only a command uses it, because its process compiles nothing before.
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
from var_tokenizer.common import InputError, KernelLibrary, check_private, graph_api, user_cache

log = logging.getLogger("var_transformer")

_PACKAGES = ("var_tokenizer", "var_transformer")
_MOST = 16  # folders; a new one replaces the least recently used one
_DAY = 24 * 60 * 60  # seconds


@contextmanager
def graph_cache(**settings: object) -> Iterator[None]:
    """Inside the block, graphs are loaded from the folder of ``settings``, or stored there.

    settings: everything that decides which graphs the block compiles, and in which order; written
    as JSON, or by ``str``. The block must compile all of these graphs or none. A folder appears
    whole or not at all. Nothing is cached if the folder cannot be written, if others could
    write to it, or if Python was not started as a command of this package.
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
            _evict(root)
            temporary = Path(tempfile.mkdtemp(dir=root, prefix="."))
    except InputError as error:
        log.warning("%s; graphs are not cached", error)
        yield
        return
    except OSError:
        yield
        return
    # MindSpore would read the script's imports, but fails on a script started by `python -m`; the
    # folder's name holds what graphs depend on
    graph_api.entry_script_path = __file__
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
    """The folder of all graphs, made if need be; None if it cannot be made or is not safe."""
    try:
        return user_cache("var-mindspore")
    except InputError as error:
        log.warning("%s; graphs are not cached", error)
        return None


def _evict(root: Path) -> None:
    """Removes the least recently used folders, to make room, and what killed processes left."""
    used = {path: path.stat().st_mtime for path in root.iterdir()}
    finished = sorted((p for p in used if p.name[0] != "."), key=lambda p: used[p], reverse=True)
    left = [p for p in used if p.name[0] == "." and used[p] < time.time() - _DAY]
    for path in finished[_MOST - 1 :] + left:
        rmtree(path, ignore_errors=True)


def _is_command() -> bool:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec is not None and spec.name.startswith("var_transformer.")


def _name(settings: dict[str, object]) -> str:
    """A hash of settings, device, versions, both packages' files and the kernels that they call."""
    known = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    libraries = [KernelLibrary(f"{package}._kernels").if_usable() for package in _PACKAGES]
    # an operator may be composed on one instruction set and a kernel on another
    known.update(
        f"{[library and library.opened.instruction_set for library in libraries]}".encode()
    )
    known.update(f"{version('mindspore')} {ms.get_context('device_target')}".encode())
    known.update(f"{sys.version} ".encode())  # reads the sources that graphs are made of
    for package in _PACKAGES:
        spec = find_spec(package)
        assert spec is not None and spec.origin is not None
        folder = Path(spec.origin).parent
        for path in sorted(p for p in folder.rglob("*") if p.suffix in (".py", ".so")):
            known.update(str(path).encode())  # graphs call kernels by path
            known.update(path.read_bytes())
    return known.hexdigest()[:32]
