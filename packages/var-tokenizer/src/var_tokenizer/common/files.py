"""Files: replaced whole or not at all, opened without waiting, private if they are executed."""

import hashlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path

from var_tokenizer.common.errors import InputError, quoted


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path next to ``path``, and renames it to ``path`` when the block ends.

    If the block raises, the temporary file is removed and ``path`` stays as it was. The temporary
    file has the suffix of ``path``, because writers choose a format by it, and the permissions
    that the umask allows. Raises InputError if the folder cannot be written to, or if ``path`` is
    a folder.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(8)}{path.suffix}")
    try:  # begins here, because Ctrl-C may come as soon as the file is there
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # let the kernel apply the umask: reading it means setting it, for all threads
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except OSError as error:
            raise InputError(f"{quoted(path)}: cannot write here: {error.strerror}") from error
        permissions = os.fstat(handle).st_mode & 0o777
        os.close(handle)
        yield temporary
        temporary.chmod(permissions)  # some writers change them
        try:
            temporary.replace(path)
        except IsADirectoryError as error:
            raise InputError(f"{quoted(path)}: is a folder; expected a file") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


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
