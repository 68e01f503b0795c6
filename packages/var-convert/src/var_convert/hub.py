"""Files of the hub: ``hf://OWNER/NAME/FILE`` -> a path, through ``huggingface_hub`` (extra [hub]).

The library knows the addresses, the mirror (HF_ENDPOINT), the token and the cache, which other
programs share. The transfer itself is here: the library forgets half a file when a command ends.
"""

import fcntl
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

from var_tokenizer.common import InputError, quoted

from var_convert.formats.folders import weight_map
from var_convert.formats.names import INDEX

log = logging.getLogger(__name__)

_ADDRESS = re.compile(r"hf://([\w.-]+/[\w.-]+)/(.+)", re.ASCII)
_DIGEST = {40: hashlib.sha1, 64: hashlib.sha256}  # of a file in git, and of a large one
_CHUNK = 1 << 20
_ATTEMPTS = 5  # in a row that bring nothing new
_PAUSE = 1.0  # seconds before the second of them, and twice as long before each further one
_TIMEOUT = 30.0  # seconds in which a server has to say something

Progress = Callable[[int, int], None]  # bytes done, bytes in total


@dataclass(frozen=True)
class _Remote:
    """A file of the hub at one commit. digest: SHA-256, or SHA-1 as git computes it."""

    address: str
    url: str
    digest: str
    size: int


def local_file(source: str | os.PathLike[str], progress: Progress = lambda *_: None) -> Path:
    """The path of ``source``; an address ``hf://OWNER/NAME/FILE`` is downloaded first.

    The file goes to the library's cache, and is not downloaded again; an index brings its shards.
    Raises InputError for an
    address that is none, a missing library, a server that refuses or fails, and a file that is not
    what the server announced.
    """
    address = os.fspath(source)
    if not address.startswith("hf://"):
        return Path(source)
    found = _ADDRESS.fullmatch(address)
    if not found or any(part in ("", ".", "..") for part in address[5:].split("/")):
        raise InputError(f"{quoted(address)}: no file of the hub; expected hf://OWNER/NAME/FILE")
    repository, name = found.groups()
    library = _library(address)
    remote, commit = _find(library, address, repository, name)
    folder = Path(library.constants.HF_HUB_CACHE, f"models--{repository.replace('/', '--')}")
    blob, pointer = folder / "blobs" / remote.digest, folder / "snapshots" / commit / name
    try:
        if not blob.exists():
            _download(library, remote, blob, progress)
        _check_digest(remote, blob)
        if not pointer.exists():
            pointer.parent.mkdir(parents=True, exist_ok=True)
            pointer.unlink(missing_ok=True)
            pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    except OSError as error:
        raise InputError(
            f"{quoted(address)}: cannot keep it in {quoted(folder)}: {error}"
        ) from error
    if name.endswith(INDEX):
        for shard in dict.fromkeys(weight_map(pointer).values()):
            local_file(f"{address.rpartition('/')[0]}/{shard}", progress)
    return pointer


def _library(address: str) -> ModuleType:
    try:
        import huggingface_hub.constants
        import huggingface_hub.utils
    except ImportError as error:
        raise InputError(
            f"{quoted(address)}: files of the hub need huggingface_hub; install it with: "
            "pip install 'var-convert[hub]'"
        ) from error
    return huggingface_hub


def _find(library: ModuleType, address: str, repository: str, name: str) -> tuple[_Remote, str]:
    """What the server says of a file, without the file, and the commit that it is from."""
    endpoint = os.environ.get("HF_ENDPOINT", library.constants.ENDPOINT).rstrip("/")
    try:
        url = library.hf_hub_url(repository, name, endpoint=endpoint)
        about = library.get_hf_file_metadata(url, timeout=_TIMEOUT, endpoint=endpoint)
        digest, commit, size = about.etag or "", about.commit_hash or "", about.size
        url = library.hf_hub_url(repository, name, revision=commit, endpoint=endpoint)
    except Exception as error:  # the library's, and those of the HTTP client that it uses
        raise InputError(f"{quoted(address)}: {_reason(error)} ({quoted(endpoint)})") from error
    # they become parts of paths
    if not re.fullmatch("[0-9a-f]{40}|[0-9a-f]{64}", digest) or size is None or size < 0:
        raise InputError(
            f"{quoted(address)}: {quoted(endpoint)} gives the digest {quoted(digest)!r} and the "
            f"size {size}; expected a SHA-256 or SHA-1, and bytes"
        )
    if not re.fullmatch("[0-9a-f]{40}", commit):
        raise InputError(
            f"{quoted(address)}: {quoted(endpoint)} gives the commit {quoted(commit)!r}; expected "
            "40 hexadecimal digits"
        )
    return _Remote(quoted(address), url, digest, size), commit


def _reason(error: Exception) -> str:
    """Why a request failed, in one line."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 404:
        return "no such model or file (404)"
    if status in (401, 403):
        return (
            f"the server wants a token that may read it ({status}): run hf auth login, or set "
            "HF_TOKEN; a model that does not exist says the same"
        )
    lines = str(error).strip().splitlines()
    return quoted(lines[0] if lines else type(error).__name__)


def _download(library: ModuleType, remote: _Remote, blob: Path, progress: Progress) -> None:
    """Writes the bytes of ``remote`` to ``blob``, beginning where an earlier command stopped."""
    blob.parent.mkdir(parents=True, exist_ok=True)
    partial = blob.with_name(f"{remote.digest}.incomplete")
    with partial.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"{remote.address}: another command is downloading it") from error
        done = file.tell()
        free = shutil.disk_usage(partial.parent).free
        if remote.size - done > free:
            raise InputError(
                f"{remote.address}: needs {(remote.size - done) / 1e9:.2f} GB; {free / 1e9:.2f} GB "
                f"are free in {quoted(partial.parent)}"
            )
        if done:
            log.info("%s: goes on after %.1f MB", remote.address, done / 1e6)
        failures = 0
        while done < remote.size:
            try:
                _receive(library, remote, file, progress)
                reason = "it ended early"
            except ConnectionError as error:
                reason = str(error)
            before, done = done, file.seek(0, os.SEEK_END)
            if done >= remote.size:
                break
            failures = 0 if done > before else failures + 1
            about = f"{remote.address}: broke off after {done} of {remote.size} bytes: {reason}"
            if failures == _ATTEMPTS:
                raise InputError(f"{about}; the same command goes on there")
            log.warning("%s; going on", about)
            time.sleep(_PAUSE * 2**failures)
        partial.replace(blob)


def _receive(library: ModuleType, remote: _Remote, file: BinaryIO, progress: Progress) -> None:
    """Appends to ``file`` what one connection brings.

    Raises ConnectionError if it breaks, and InputError if the server refuses or sends more than it
    announced.
    """
    done = file.seek(0, os.SEEK_END)
    headers = library.utils.build_hf_headers() | {"Accept-Encoding": "identity"}
    if done:
        headers["Range"] = f"bytes={done}-"
    request: dict[str, Any] = {"headers": headers, "follow_redirects": True, "timeout": _TIMEOUT}
    try:
        with library.get_session().stream("GET", remote.url, **request) as response:
            library.utils.hf_raise_for_status(response)
            if response.status_code != 206:  # all of it, whatever was asked for
                done = file.truncate(0)
            elif not response.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
                raise InputError(f"{remote.address}: the server sends another part than asked for")
            for chunk in response.iter_bytes():  # a size would hold bytes back, and lose them
                if done + len(chunk) > remote.size:
                    file.truncate(0)
                    raise InputError(
                        f"{remote.address}: the server sends more than the {remote.size} bytes "
                        "that it announced"
                    )
                file.write(chunk)
                done += len(chunk)
                progress(done, remote.size)
    except InputError:
        raise
    except Exception as error:  # those of the HTTP client that the library uses
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status == 416:  # it ends before the part that we have
            file.truncate(0)
        elif status is not None and status < 500:
            raise InputError(f"{remote.address}: {_reason(error)}") from error
        elif isinstance(error, OSError) and error.errno is not None:
            raise  # the disk
        raise ConnectionError(_reason(error)) from error
    finally:
        file.flush()


def _check_digest(remote: _Remote, blob: Path) -> None:
    """Removes ``blob`` and raises InputError if its digest is not the one that was announced."""
    digest = _DIGEST[len(remote.digest)]()
    with blob.open("rb") as file:
        if len(remote.digest) == 40:  # git's digest covers this, too
            digest.update(f"blob {os.fstat(file.fileno()).st_size}\0".encode())
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != remote.digest:
        blob.unlink()
        raise InputError(
            f"{remote.address}: its digest is {digest.hexdigest()}; expected {remote.digest}, as "
            "the server says; it was removed"
        )
