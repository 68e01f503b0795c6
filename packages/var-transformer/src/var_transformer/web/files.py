"""The page's folder of uploads and pictures: private, and deleted when the server ends."""

import atexit
import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from var_tokenizer.common import InputError

from var_transformer.web.auth import RefusedError

_PREFIX = "var-serve-"


@contextmanager
def private_folder() -> Iterator[Path]:
    """A new folder (mode 0700) for uploads and the pictures shown to visitors; deleted at the end.

    Enter it before Gradio is imported, which then keeps its files there. Removes the folders of
    servers that were killed. Raises InputError if it cannot be made.
    """
    _remove_left()
    try:
        folder, lock = _locked_folder()
    except OSError as error:
        raise InputError(f"no place for temporary files: {error}; set TMPDIR") from error
    # some of these make Gradio share a folder or open a tunnel
    before = {name: value for name, value in os.environ.items() if name.startswith("GRADIO_")}
    # at the end of the process, too: Gradio's threads may write pictures until they are joined
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for variable in before:
        del os.environ[variable]
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    try:
        yield folder
    finally:
        del os.environ["GRADIO_TEMP_DIR"]
        os.environ.update(before)
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _locked_folder() -> tuple[Path, int]:
    """A new folder, and a lock on it that ends with this process, however that ends."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX)).resolve()
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # a server that has just started takes it for one that is left
            os.close(lock)
            continue
        except OSError:  # this file system has no locks, so nobody removes it either
            pass
        if os.fstat(lock).st_nlink:  # else it has been removed already
            return folder, lock
        os.close(lock)


def _remove_left() -> None:
    """Removes the folders whose servers do not run any more."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if path.lstat().st_uid != os.geteuid():
                continue
            lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises while its server runs
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)


def find_file(folder: Path, name: object) -> Path:
    """The file that a visitor names; raises RefusedError unless it is a regular one in the folder.

    It touches nothing outside the folder, not even to see whether it exists.
    """
    refusal = RefusedError(403, "A file must be one that was uploaded to this page.")
    if not isinstance(name, str) or "\0" in name:
        raise refusal
    path = os.path.normpath(name)
    if path != name or not path.startswith(f"{folder}{os.sep}"):
        raise refusal
    try:
        # a link may lead out of the folder, and reading a pipe or device may never end
        if os.path.realpath(path) != path or not stat.S_ISREG(os.lstat(path).st_mode):
            raise refusal
    except OSError as error:
        raise refusal from error
    return Path(path)
