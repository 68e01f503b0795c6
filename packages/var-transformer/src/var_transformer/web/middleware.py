"""What stands between the network and Gradio: who may ask, for what, and how much of it.

An ASGI application around the page's. Whatever is not on the list of routes below does not exist:
Gradio has many more than this page uses.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import re
import tempfile
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import gradio as gr
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

from var_transformer.web.files import find_file
from var_transformer.web.sessions import RefusedError, Visits
from var_transformer.web.validation import MAX_BODY, Calls, check_session

log = logging.getLogger("var_transformer")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_API = "/gradio_api"
_PATIENCE = 60.0  # seconds in which a body must have come
_DRAINED = 64 * 2**20  # bytes of a refused request that are taken all the same
_FORM = 64 * 1024  # bytes of an upload beside its file
_READ = re.compile(
    r"/|/config|/favicon\.ico|/robots\.txt|/theme\.css|/(assets|static)/.+"
    rf"|{_API}/(info|openapi\.json|startup-events|app_id|queue/status)"
)
_RESULTS = re.compile(rf"{_API}/(?:queue/data|call/(?:v2/)?\w+/(?P<job>[^/]+))")
_ALIVE = re.compile(rf"{_API}/heartbeat/(?P<session>[^/]+)")
_FILE = re.compile(rf"{_API}/file=(?P<path>.+)", re.DOTALL)
_CALL = re.compile(rf"{_API}/(?:queue/join|run/(?P<run>\w+)|call/(?P<v2>v2/)?(?P<name>\w+))/?")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_NETLOC = re.compile(r"[\w.:\[\]-]*", re.ASCII)  # a name and a port, and nothing else
_FILE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox; frame-ancestors 'none'"
# Gradio sets styles on elements; its editor makes functions of strings, and a worker of a blob
_PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-eval' {scripts}; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'none'"
)


@dataclass(frozen=True)
class Login:
    """Who may use the page, as HTTP Basic authentication."""

    user: str
    password: str

    def admits(self, header: str) -> bool:
        """Whether an Authorization header names this user and password."""
        expected = base64.b64encode(f"{self.user}:{self.password}".encode())
        scheme, _, given = header.partition(" ")
        return scheme.lower() == "basic" and hmac.compare_digest(given.strip().encode(), expected)


class Guard:
    """The page's application behind all that is checked before it is asked."""

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        page: gr.Blocks,
        folder: Path,
        visits: Visits,
        hosts: frozenset[str],
        login: Login | None,
        head: str,
    ) -> None:
        """hosts: names that the page is asked by, without ports. head: HTML for its head."""
        self._app, self._page, self._folder, self._visits = app, page, folder, visits
        self._calls = Calls(page, folder)
        self._hosts, self._login, self._head = hosts, login, head
        self._joining, self._uploading = asyncio.Lock(), asyncio.Lock()
        self.closing = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or has the page answer it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":  # the page has none
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            more = scope["method"] == "POST"  # of the body is to come

            async def noted_receive() -> Message:
                nonlocal more
                message = await receive()
                more = message.get("more_body", False)
                return message

            try:
                await self._answer(scope, noted_receive, _with_headers(send, _FILE_POLICY))
            except RefusedError as refusal:
                headers = {"Connection": "close"} if scope["method"] == "POST" else {}
                rest = _DRAINED
                with suppress(TimeoutError):
                    async with asyncio.timeout(_PATIENCE):
                        while more and rest > 0:  # who still sends would not see the answer
                            rest -= len((await noted_receive()).get("body", b""))
                if refusal.status == 401:
                    headers["WWW-Authenticate"] = 'Basic realm="VAR", charset="UTF-8"'
                answer = JSONResponse({"detail": refusal.sentence}, refusal.status, headers)
                await answer(scope, receive, _with_headers(send, _FILE_POLICY))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = MutableHeaders(scope=scope)
        self._check_origin(headers)
        if self._login is not None and not self._login.admits(headers.get("authorization", "")):
            if "authorization" in headers:
                await asyncio.sleep(1)  # guessing takes time
            raise RefusedError(401, "This page asks for a name and a password.")
        del headers["x-gradio-server"]  # Gradio would take its own address from it
        path, reads = scope["path"], scope["method"] in ("GET", "HEAD")
        if not _RESULTS.fullmatch(path):
            scope["query_string"] = b""  # nothing else that the page asks for has one
        if reads and path == "/":
            await self._send_page(scope, headers, receive, send)
        elif reads and _READ.fullmatch(path):
            await self._app(scope, receive, send)
        elif reads and (match := _FILE.fullmatch(path)):
            find_file(self._folder, match["path"])
            del headers["range"]  # Gradio fails at some; the files are small
            await self._app(scope, receive, send)
        elif reads and (match := _RESULTS.fullmatch(path) or _ALIVE.fullmatch(path)):
            await self._stream(scope, match, receive, send)
        elif scope["method"] == "POST" and (match := _CALL.fullmatch(path)):
            await self._call(scope, match, receive, send)
        elif scope["method"] == "POST" and path == f"{_API}/cancel":
            call = self._calls.read_cancel(await _body(receive))
            await self._forward(scope, call, receive, send)
        elif scope["method"] == "POST" and path == f"{_API}/upload":
            await self._upload(scope, headers, receive, send)
        else:
            raise RefusedError(404, "There is no such address on this page.")

    def _check_origin(self, headers: Headers) -> None:
        """Other sites may not use a visitor's browser to reach the page.

        Neither by a name of theirs that leads here, nor by a request from one of their pages.
        """
        hosts = [*headers.getlist("host"), *headers.getlist("x-forwarded-host")]
        if not headers.get("host") or any(_host(host)[0] not in self._hosts for host in hosts):
            raise RefusedError(403, "The page is not known by this name; see --allowed-host.")
        origin = headers.get("origin")
        if origin is not None:
            scheme, _, netloc = origin.partition("://")
            if scheme not in ("http", "https") or _host(netloc) not in [_host(h) for h in hosts]:
                raise RefusedError(403, "Other sites may not use this page.")
        elsewhere = headers.get("sec-fetch-site") in ("cross-site", "same-site")
        if elsewhere and headers.get("sec-fetch-mode") != "navigate":
            raise RefusedError(403, "Other sites may not use this page.")

    # ------------------------------------------------------------ what is read
    async def _send_page(
        self, scope: Scope, headers: MutableHeaders, receive: Receive, send: Send
    ) -> None:
        """The page's HTML, with a policy that lets no script run but those in it now."""
        del headers["accept-encoding"]  # it is read here
        start: Message = {}
        parts: list[bytes] = []

        async def collect(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            else:
                parts.append(message.get("body", b""))

        await self._app(scope, receive, collect)
        html = b"".join(parts).decode()
        # Gradio's advertisements, and a manifest that browsers ask for without the password
        gradios = r'\s*<(meta\s+(property="og:|name="twitter:)|link rel="manifest")[^>]*>'
        html = re.sub(gradios, "", html)
        html = html.replace("</head>", f"{self._head}</head>", 1)
        scripts = re.findall(r"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", html, re.DOTALL)
        hashes = [base64.b64encode(hashlib.sha256(each.encode()).digest()) for each in scripts]
        policy = _PAGE_POLICY.format(scripts=" ".join(f"'sha256-{h.decode()}'" for h in hashes))
        body = html.encode()
        MutableHeaders(scope=start)["content-length"] = str(len(body))
        if scope["method"] == "HEAD":
            body = b""
        send = _with_headers(send, policy)
        await send(start)
        await send({"type": "http.response.body", "body": body})

    async def _stream(
        self, scope: Scope, match: re.Match[str], receive: Receive, send: Send
    ) -> None:
        """An answer that goes on: its listener is counted, and it ends when the server does."""
        fields = match.groupdict()
        if "session" in fields:
            session = check_session(fields["session"])
        elif fields["job"] is None:
            query = parse_qs(scope["query_string"].decode("latin-1"))
            session = check_session(query.get("session_hash", [None])[0])
            scope["query_string"] = f"session_hash={session}".encode()  # of several, the same
        else:
            session = self._visits.session_of(fields["job"])
        results = "session" not in fields
        if results and session not in self._visits.queue.pending_messages_per_session:
            raise RefusedError(404, "There is no such job.")

        async def receive_or_close() -> Message:
            """Says that the client has left when the server is to end."""
            waiting = [asyncio.ensure_future(each) for each in (receive(), self.closing.wait())]
            try:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                return waiting[0].result() if waiting[0].done() else {"type": "http.disconnect"}
            finally:
                for each in waiting:
                    each.cancel()

        goes_on = False

        async def noted_send(message: Message) -> None:
            nonlocal goes_on
            goes_on = message["type"] == "http.response.start" or message.get("more_body", False)
            await send(message)

        with self._visits.stream(session, results):
            await self._app(scope, receive_or_close, noted_send)
        if goes_on and self.closing.is_set():  # Gradio takes the client for gone
            await send({"type": "http.response.body", "body": b""})

    # ------------------------------------------------------------ what is sent
    async def _call(self, scope: Scope, match: re.Match[str], receive: Receive, send: Send) -> None:
        name, by_name = match["run"] or match["name"], match["v2"] is not None
        call = self._calls.read(await _body(receive), name, by_name)
        if by_name:
            scope["path"] = scope["path"].replace("/call/v2/", "/call/")
            scope["raw_path"] = scope["path"].encode()
        if match["run"]:
            if self._calls.is_queued(call):
                raise RefusedError(404, f"This function has a queue: POST to {_API}/call/NAME.")
            if call["session_hash"] not in self._page.state_holder:  # nothing to be remembered
                call["session_hash"] = None
            await self._forward(scope, call, receive, send)
            return
        async with self._joining:  # from the look at the queue until the job is in it
            self._visits.check_turn(call["session_hash"], _address(scope))
            await self._forward(scope, call, receive, send)

    async def _forward(
        self, scope: Scope, call: dict[str, Any], receive: Receive, send: Send
    ) -> None:
        body: bytes | None = json.dumps(call).encode()
        headers = MutableHeaders(scope=scope)
        headers["content-type"], headers["content-length"] = "application/json", str(len(body))
        del headers["transfer-encoding"]

        async def replay() -> Message:
            nonlocal body
            if body is None:
                return await receive()
            sent, body = body, None
            return {"type": "http.request", "body": sent, "more_body": False}

        await self._app(scope, replay, send)

    async def _upload(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        size = headers.get("content-length", "")
        if not size.isdecimal():
            raise RefusedError(411, "An upload must say how long it is.")
        address, size = _address(scope), int(size)
        answer: list[Message] = []

        async def collect(message: Message) -> None:
            answer.append(message)

        del MutableHeaders(scope=scope)["accept-encoding"]  # the answer is read here
        try:
            with (
                self._visits.upload(address, max(size - _FORM, 0)),
                # Gradio would keep what has come of an upload that breaks off
                tempfile.TemporaryFile(dir=self._folder) as file,
            ):
                while file.tell() < size:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    file.write(message.get("body", b""))
                file.seek(0)

                async def replay() -> Message:
                    body = file.read(_FORM)
                    return {"type": "http.request", "body": body, "more_body": file.tell() < size}

                async with self._uploading:
                    try:
                        await self._app(scope, replay, collect)
                    except Exception as error:  # of a form that is not well formed
                        log.warning("an upload failed: %s", type(error).__name__)
                    finally:
                        self._sweep()
                    self._note_upload(address, b"".join(each.get("body", b"") for each in answer))
        except OSError as error:  # a full disk
            log.warning("an upload failed: %s", error.strerror or type(error).__name__)
            raise RefusedError(503, "There is no place for this upload.") from error
        for message in answer:
            await send(message)

    def _sweep(self) -> None:
        """Deletes what Gradio leaves of a form that it does not take, and of its odd parts."""
        for path in self._folder.iterdir():
            if path.is_file():
                path.unlink(missing_ok=True)

    def _note_upload(self, address: str, answer: bytes) -> None:
        try:
            paths = json.loads(answer)
        except ValueError:
            return
        for path in paths if isinstance(paths, list) else ():
            self._visits.note_upload(address, Path(path))


def _with_headers(send: Send, policy: str) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers[name] = value
            headers.setdefault("Content-Security-Policy", policy)
        await send(message)

    return send_with_headers


async def _body(receive: Receive) -> bytes:
    """The body of a request; raises RefusedError for one that is too long or too slow."""
    body = b""
    try:
        async with asyncio.timeout(_PATIENCE):
            while True:
                message = await receive()
                body += message.get("body", b"")
                if len(body) > MAX_BODY:
                    raise RefusedError(413, f"A call may have {MAX_BODY} bytes.")
                if not message.get("more_body"):
                    return body
    except TimeoutError as error:
        raise RefusedError(408, "The request did not come in time.") from error


def _host(netloc: str) -> tuple[str | None, int | None]:
    """(name, port) of a Host header; name is None where it holds anything else."""
    if not _NETLOC.fullmatch(netloc):
        return None, None
    try:
        parts = urlsplit(f"//{netloc}")
        return parts.hostname, parts.port
    except ValueError:
        return None, None


def _address(scope: Scope) -> str:
    return scope["client"][0] if scope.get("client") else ""
