"""Lists that took long to make, kept in the user's cache folder for the next start.

Each is a file of arrays with a checksum, under a name that follows from what it lists. It notes
the state that it was true of: a list of another state, or a damaged one, counts as missing. Lists
that nobody used for 90 days are removed. Of the workers of a run, one makes a list and the others
read it, wherever they share the cache folder.
"""

import fcntl
import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from hashlib import blake2b
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from var_tokenizer.common import (
    InputError,
    arrays_checksum,
    quoted,
    replacing,
    user_cache,
    write_tensors,
)

_FORMAT = "1"  # of what is listed, and how
_UNUSED = 90 * 24 * 60 * 60  # seconds
FRESH = 5 * 10**9
"""Nanoseconds. What changed so shortly before it was read may change again within one tick of a
file system's clock, which nothing would show: it is not kept."""

log = logging.getLogger(__name__)


class KeptLists:
    """The lists of the user. Without a cache folder of the user's own, nothing is kept."""

    def __init__(self) -> None:
        try:
            self._root = user_cache("var-train")
        except InputError as error:
            log.warning("%s; lists of images are not kept", error)
            self._root = None
        if self._root is not None:
            _remove_unused(self._root)

    @contextmanager
    def one_first(self, what: Path) -> Iterator[None]:
        """Lets one process into the block; others that come meanwhile wait, and then go together.

        The first one makes a list of ``what``, which they find. If it could not keep the list, or
        died, each makes its own. So does each where files cannot be locked.
        """
        path, handle = self._path(what, ".lock"), None
        if path is not None:
            with suppress(OSError):
                handle = _lock(path, what)
        try:
            yield
        finally:
            if path is not None and handle is not None:
                path.unlink(missing_ok=True)
                os.close(handle)

    def read(self, what: Path, state: str) -> dict[str, np.ndarray] | None:
        """The arrays that were kept of ``what`` in ``state``; None if there are none."""
        path = self._path(what)
        if path is None or not path.is_file():
            return None
        try:
            with safe_open(path, framework="numpy") as file:
                texts = file.metadata() or {}
                if (texts["state"], texts["format"]) != (state, _FORMAT):
                    return None
                arrays = {name: file.get_tensor(name) for name in sorted(file.keys())}
            if texts["sha256"] != arrays_checksum(arrays):
                return None
            os.utime(path)
        except (OSError, SafetensorError, KeyError, TypeError):
            return None
        return arrays

    def keep(self, what: Path, state: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keeps arrays of ``what``, if that is possible."""
        path = self._path(what)
        if path is None:
            return
        texts = {"state": state, "format": _FORMAT, "sha256": arrays_checksum(arrays)}
        try:
            with replacing(path) as temporary:
                write_tensors(temporary, arrays, texts)
        except (InputError, OSError) as error:
            log.warning("a list of images is not kept: %s", error)

    def forget(self, what: Path) -> None:
        """Removes what was kept of ``what``."""
        path = self._path(what)
        if path is not None:
            with suppress(OSError):
                path.unlink()

    def _path(self, what: Path, suffix: str = ".safetensors") -> Path | None:
        if self._root is None:
            return None
        digest = blake2b(os.fsencode(what.absolute()), digest_size=16)
        return self._root / f"{digest.hexdigest()}{suffix}"


def _lock(path: Path, what: Path) -> int | None:
    """A descriptor that holds the lock; None after another process has held it.

    Raises OSError where files cannot be locked.
    """
    with ExitStack() as stack:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        stack.callback(os.close, handle)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("%s: waiting for another process, which lists it", quoted(what))
            fcntl.flock(handle, fcntl.LOCK_SH)
            return None
        stack.pop_all()
        return handle


def _remove_unused(root: Path) -> None:
    for path in root.iterdir():
        with suppress(OSError):
            if path.stat().st_mtime < time.time() - _UNUSED:
                path.unlink()
