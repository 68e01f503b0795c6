"""Files: replaced whole or not at all, opened without waiting, private if they are executed."""

import errno
import fcntl
import hashlib
import logging
import os
import re
import secrets
import socket
import stat
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import TextIO

from var_tokenizer.common.errors import InputError, quoted

log = logging.getLogger(__name__)

_TEMPORARY = re.compile(r"(\..+\.[0-9a-f]{16})(\.[^.]+)?")  # names of ``replacing``
_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path next to ``path``, and renames it to ``path`` when the block ends.

    If the block raises, the temporary file is removed and ``path`` stays as it was. The temporary
    file has the suffix of ``path``, because writers choose a format by it, and the permissions
    that the umask allows. Raises InputError if the folder cannot be written to, if the disk is
    full, or if ``path`` is a folder.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(8)}{path.suffix}")
    handle = None
    try:  # begins here, because Ctrl-C may come as soon as the file is there
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # let the kernel apply the umask: reading it means setting it, for all threads
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except OSError as error:
            raise InputError(f"{quoted(path)}: cannot write here: {error.strerror}") from error
        permissions = os.fstat(handle).st_mode & 0o777
        with suppress(OSError):
            _lock(handle)  # tells ``remove_leftovers`` that somebody writes it
        try:
            yield temporary
            temporary.chmod(permissions)  # some writers change them
        except OSError as error:
            if error.errno not in _UNWRITABLE:
                raise
            raise InputError(f"{quoted(path)}: cannot write: {error.strerror}") from error
        try:
            temporary.replace(path)
        except IsADirectoryError as error:
            raise InputError(f"{quoted(path)}: is a folder; expected a file") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if handle is not None:
            os.close(handle)


def remove_leftovers(folder: str | os.PathLike[str]) -> None:
    """Removes the temporary files of ``replacing`` in ``folder`` whose process was killed."""
    found = defaultdict(list)
    for path in Path(folder).glob(".*"):
        if name := _TEMPORARY.fullmatch(path.name):
            found[name[1]].append(path)  # a library may write a second one beside it
    for paths in found.values():
        if not any(map(_is_written, paths)):
            for path in paths:
                with suppress(OSError):
                    path.unlink()


@contextmanager
def holding(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keeps other processes that hold ``folder`` out while the block runs.

    For commands that write several files: two in one folder would replace one another's. Makes the
    folder, and removes it again if the block leaves it empty; removes leftovers of killed
    processes. The system ends a hold with its process, however that ends.

    Raises InputError, which names the other process, if there is one. A folder that cannot be
    written to is left for the block to find.
    """
    folder = Path(folder)
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    path, lock = folder / ".lock", None
    try:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            lock = _hold(path)
        remove_leftovers(folder)
        yield
    finally:
        with suppress(OSError):
            if lock is not None:
                path.unlink(missing_ok=True)  # while nobody else can have it
                lock.close()
            for parent in made:
                parent.rmdir()


def _hold(path: Path) -> TextIO:
    """The locked file, which says who holds it; raises OSError if that cannot be."""
    while True:
        with ExitStack() as stack:
            # the folder may be anyone's: a link could lead to a file of the user's
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
            file = stack.enter_context(os.fdopen(handle, "r+", errors="replace"))
            try:
                free = _lock(handle)
            except OSError:
                path.unlink(missing_ok=True)
                log.warning(
                    "%s: files cannot be locked here; nothing keeps a second command out",
                    quoted(path.parent),
                )
                raise
            if not free:
                raise InputError(
                    f"{quoted(path.parent)}: {quoted(file.read(200)) or 'another process'} writes "
                    "here; expected one command at a time in a folder"
                )
            if os.fstat(handle).st_nlink:  # else its last owner removed it in between
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
                file.flush()
                stack.pop_all()
                return file


def _is_written(temporary: Path) -> bool:
    """Whether a process is writing a temporary file, or nobody can tell."""
    try:
        with temporary.open("r+b") as file:
            return not _lock(file.fileno())
    except OSError:
        return True


def _lock(handle: int) -> bool:
    """Locks a file for as long as it is open; False if another process has locked it.

    Raises OSError where files cannot be locked.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def user_cache(name: str) -> Path | None:
    """The folder ``name`` in the user's cache folder, made if need be; None if it cannot be made.

    Raises InputError as ``check_private`` does.
    """
    try:
        # to be ignored if relative, as specified
        given = Path(os.environ.get("XDG_CACHE_HOME", ""))
        folder = (given if given.is_absolute() else Path.home() / ".cache") / name
        folder.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        check_private(folder)
    except (OSError, RuntimeError):  # RuntimeError: the user has no home
        return None
    return folder


def check_private(folder: Path) -> None:
    """Raises InputError unless ``folder`` is the user's own and nobody else can write to it.

    For caches, because their contents are executed and deleted. Refuses a link, and a folder
    that others could replace with their own.
    """
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode):
        raise InputError(f"{quoted(folder)}: no folder; expected one, not a link to one")
    if about.st_uid != os.geteuid():
        raise InputError(f"{quoted(folder)}: belongs to another user; expected a folder of yours")
    if about.st_mode & 0o022:
        raise InputError(f"{quoted(folder)}: others can write to it; expected chmod go-w")
    for parent in folder.resolve().parents:
        mode = parent.stat().st_mode
        if mode & 0o002 and not mode & stat.S_ISVTX:
            raise InputError(f"{quoted(parent)}: everybody can write to it; expected chmod o-w")


def open_regular(path: str | os.PathLike[str]) -> BufferedReader:
    """Opens a regular file for reading bytes. Raises InputError for anything else.

    Opening a named pipe or a terminal would wait for its other end, and opening a device may
    start it.
    """
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):
            raise InputError(f"{quoted(path)}: no regular file")
        # it may have been replaced since: open it without waiting, and look again
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError as error:
        raise InputError(f"{quoted(path)}: cannot read this file: {error.strerror}") from error
    file = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        file.close()
        raise InputError(f"{quoted(path)}: no regular file")
    return file


def file_digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal. Raises InputError if it is no file."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
