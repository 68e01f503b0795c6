"""Who may use the page: the password, and the host names and sites that requests may come by."""

import base64
import hmac
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from var_tokenizer.common import InputError

from var_transformer.web import limits

if TYPE_CHECKING:  # of the extra [web]
    from starlette.datastructures import Headers

LOOPBACK = ("localhost", "127.0.0.1", "::1")
_NETLOC = re.compile(r"[\w.:\[\]-]*", re.ASCII)  # a name and a port, and nothing else


class RefusedError(Exception):
    """Refuses a request with an HTTP status and a sentence for its sender."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


@dataclass(frozen=True)
class Login:
    """The user and password that visitors must give, as HTTP Basic authentication."""

    user: str
    password: str

    @classmethod
    def read(cls, auth: str) -> "Login":
        """Reads USER:FILE; raises InputError unless the file is private and has a password."""
        user, _, file = auth.partition(":")
        if not user or not file:
            raise InputError(f"auth is {auth!r}; expected USER:FILE")
        try:
            if Path(file).stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise InputError(f"{file}: others can read this password; expected chmod 600")
            lines = Path(file).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file}: not a readable text file: {error}") from error
        if not lines or len(lines[0]) < limits.MIN_PASSWORD:
            raise InputError(
                f"{file}: the password in the first line is too short; "
                f"expected at least {limits.MIN_PASSWORD} characters"
            )
        return cls(user, lines[0])

    def admits(self, header: str) -> bool:
        """Whether an Authorization header holds this user and password."""
        expected = base64.b64encode(f"{self.user}:{self.password}".encode())
        scheme, _, given = header.partition(" ")
        return scheme.lower() == "basic" and hmac.compare_digest(given.strip().encode(), expected)


def check_origin(headers: "Headers", hosts: frozenset[str]) -> None:
    """Raises RefusedError if another site uses a visitor's browser to reach the page.

    That is, through a host name of its own that leads here, or with a request from one of its
    pages. hosts: the names that the page is known by, without ports.
    """
    given = [*headers.getlist("host"), *headers.getlist("x-forwarded-host")]
    if not headers.get("host") or any(_host(host)[0] not in hosts for host in given):
        raise RefusedError(403, "The page is not known by this name; see --allowed-host.")
    origin = headers.get("origin")
    if origin is not None:
        scheme, _, netloc = origin.partition("://")
        if scheme not in ("http", "https") or _host(netloc) not in [_host(h) for h in given]:
            raise RefusedError(403, "Other sites may not use this page.")
    elsewhere = headers.get("sec-fetch-site") in ("cross-site", "same-site")
    if elsewhere and headers.get("sec-fetch-mode") != "navigate":
        raise RefusedError(403, "Other sites may not use this page.")


def _host(netloc: str) -> tuple[str | None, int | None]:
    """(name, port) of a Host header; the name is None if it holds anything else."""
    if not _NETLOC.fullmatch(netloc):
        return None, None
    try:
        parts = urlsplit(f"//{netloc}")
        return parts.hostname, parts.port
    except ValueError:
        return None, None
