"""The ASGI middleware between the network and Gradio: checks every request before Gradio sees it.

Only the routes listed below exist: Gradio has many more than this page uses.
"""

import asyncio
import base64
import hashlib
import json
import logging
import re
import tempfile
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import anyio
import gradio as gr
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

from var_transformer.web import limits
from var_transformer.web.auth import Login, RefusedError, check_origin
from var_transformer.web.files import find_file
from var_transformer.web.sessions import Sessions
from var_transformer.web.validation import CallValidator, check_session

log = logging.getLogger("var_transformer")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_API = "/gradio_api"
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
_FILE_POLICY = "default-src 'none'; style-src 'unsafe-inline'; sandbox; frame-ancestors 'none'"
# Gradio styles elements inline; its editor makes functions from strings, and a worker from a blob
_PAGE_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-eval' {scripts}; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "connect-src 'self' data: blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; "
    "frame-ancestors 'none'"
)


class Guard:
    """The page's application, behind the checks of every request."""

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        page: gr.Blocks,
        folder: Path,
        sessions: Sessions,
        hosts: frozenset[str],
        login: Login | None,
        head: str,
    ) -> None:
        """hosts: names that the page is known by, without ports. head: HTML for its head."""
        self._app, self._page, self._folder, self._sessions = app, page, folder, sessions
        self._validator = CallValidator(page, folder)
        self._hosts, self._login, self._head = hosts, login, head
        self._joining, self._uploading = asyncio.Lock(), asyncio.Lock()
        self.closing = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request itself, or passes it on to the page."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":  # the page has none
            await receive()
            await send({"type": "websocket.close", "code": 1008})
        else:
            more = scope["method"] == "POST"  # whether more of the body is to come

            async def noted_receive() -> Message:
                nonlocal more
                message = await receive()
                more = message.get("more_body", False)
                return message

            try:
                await self._answer(scope, noted_receive, _with_headers(send, _FILE_POLICY))
            except RefusedError as refusal:
                headers = {"Connection": "close"} if scope["method"] == "POST" else {}
                rest = limits.MAX_DRAINED
                with anyio.move_on_after(limits.BODY_SECONDS):
                    while more and rest > 0:  # a sender that is not done misses the answer
                        rest -= len((await noted_receive()).get("body", b""))
                if refusal.status == 401:
                    headers["WWW-Authenticate"] = 'Basic realm="VAR", charset="UTF-8"'
                answer = JSONResponse({"detail": refusal.sentence}, refusal.status, headers)
                await answer(scope, receive, _with_headers(send, _FILE_POLICY))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = MutableHeaders(scope=scope)
        check_origin(headers, self._hosts)
        if self._login is not None and not self._login.admits(headers.get("authorization", "")):
            if "authorization" in headers:
                await asyncio.sleep(limits.GUESS_SECONDS)
            raise RefusedError(401, "This page asks for a name and a password.")
        del headers["x-gradio-server"]  # Gradio would believe that this is its address
        path, reads = scope["path"], scope["method"] in ("GET", "HEAD")
        if not _RESULTS.fullmatch(path):
            scope["query_string"] = b""  # no other request of the page has one
        if reads and path == "/":
            await self._send_page(scope, headers, receive, send)
        elif reads and _READ.fullmatch(path):
            await self._app(scope, receive, send)
        elif reads and (match := _FILE.fullmatch(path)):
            find_file(self._folder, match["path"])
            del headers["range"]  # Gradio fails on some of these; the files are small
            await self._app(scope, receive, send)
        elif reads and (match := _RESULTS.fullmatch(path) or _ALIVE.fullmatch(path)):
            await self._stream(scope, match, receive, send)
        elif scope["method"] == "POST" and (match := _CALL.fullmatch(path)):
            await self._call(scope, match, receive, send)
        elif scope["method"] == "POST" and path == f"{_API}/cancel":
            call = self._validator.read_cancel(await _body(receive))
            await self._forward(scope, call, receive, send)
        elif scope["method"] == "POST" and path == f"{_API}/upload":
            await self._upload(scope, headers, receive, send)
        else:
            raise RefusedError(404, "There is no such address on this page.")

    # ------------------------------------------------------------ GET
    async def _send_page(
        self, scope: Scope, headers: MutableHeaders, receive: Receive, send: Send
    ) -> None:
        """Sends the page's HTML, with a policy that lets only the scripts in it run."""
        del headers["accept-encoding"]  # to be read here, uncompressed
        start: Message = {}
        parts: list[bytes] = []

        async def collect(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            else:
                parts.append(message.get("body", b""))

        await self._app(scope, receive, collect)
        html = b"".join(parts).decode()
        # Gradio's advertisements, and a manifest that browsers request without the password
        unwanted = r'\s*<(meta\s+(property="og:|name="twitter:)|link rel="manifest")[^>]*>'
        html = re.sub(unwanted, "", html)
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
        """Streams an answer: counts its listener, and ends it when the server ends."""
        fields = match.groupdict()
        session: str | None
        if "session" in fields:
            session = check_session(fields["session"])
        elif fields["job"] is None:
            query = parse_qs(scope["query_string"].decode("latin-1"))
            session = check_session(query.get("session_hash", [None])[0])
            # of several names, Gradio would read another
            scope["query_string"] = f"session_hash={session}".encode()
        else:
            session = self._sessions.session_of(fields["job"])
        results = "session" not in fields
        pending = self._sessions.queue.pending_messages_per_session
        if session is None or (results and session not in pending):
            raise RefusedError(404, "There is no such job.")

        async def receive_or_close() -> Message:
            """Reports that the client has left once the server is to end."""
            message = asyncio.ensure_future(receive())
            closing = asyncio.ensure_future(self.closing.wait())
            try:
                await asyncio.wait([message, closing], return_when=asyncio.FIRST_COMPLETED)
                return message.result() if message.done() else {"type": "http.disconnect"}
            finally:
                message.cancel()
                closing.cancel()

        unfinished = False

        async def noted_send(message: Message) -> None:
            nonlocal unfinished
            unfinished = message["type"] == "http.response.start" or message.get("more_body", False)
            await send(message)

        with self._sessions.stream(session, results):
            await self._app(scope, receive_or_close, noted_send)
        if unfinished and self.closing.is_set():  # Gradio believes that the client has left
            await send({"type": "http.response.body", "body": b""})

    # ------------------------------------------------------------ POST
    async def _call(self, scope: Scope, match: re.Match[str], receive: Receive, send: Send) -> None:
        name, by_name = match["run"] or match["name"], match["v2"] is not None
        call = self._validator.read(await _body(receive), name, by_name)
        if by_name:
            scope["path"] = scope["path"].replace("/call/v2/", "/call/")
            scope["raw_path"] = scope["path"].encode()
        if match["run"]:
            if self._validator.is_queued(call):
                raise RefusedError(404, f"This function has a queue: POST to {_API}/call/NAME.")
            if call["session_hash"] not in self._page.state_holder:  # there is nothing to remember
                call["session_hash"] = None
            await self._forward(scope, call, receive, send)
            return
        async with self._joining:  # so that no other request joins between the check and the job
            self._sessions.check_jobs(call["session_hash"], _address(scope))
            await self._forward(scope, call, receive, send)

    async def _forward(
        self, scope: Scope, call: dict[str, Any], receive: Receive, send: Send
    ) -> None:
        body = json.dumps(call).encode()
        headers = MutableHeaders(scope=scope)
        headers["content-type"], headers["content-length"] = "application/json", str(len(body))
        del headers["transfer-encoding"]
        replayed = False

        async def replay() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self._app(scope, replay, send)

    async def _upload(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        length = headers.get("content-length", "")
        if not length.isdecimal():
            raise RefusedError(411, "An upload must say how long it is.")
        address, size = _address(scope), int(length)
        answer: list[Message] = []

        async def collect(message: Message) -> None:
            answer.append(message)

        del MutableHeaders(scope=scope)["accept-encoding"]  # the answer is read here, uncompressed
        try:
            with (
                self._sessions.upload(address, max(size - limits.MAX_FORM, 0)),
                # Gradio would keep the beginning of an upload that breaks off
                tempfile.TemporaryFile(dir=self._folder) as file,
            ):
                while file.tell() < size:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    file.write(message.get("body", b""))
                file.seek(0)

                async def replay() -> Message:
                    body = file.read(limits.MAX_FORM)
                    return {"type": "http.request", "body": body, "more_body": file.tell() < size}

                async with self._uploading:
                    try:
                        await self._app(scope, replay, collect)
                    except Exception as error:  # the form is not well formed
                        log.warning("an upload failed: %s", type(error).__name__)
                    finally:
                        self._sweep()
                    self._note_upload(address, b"".join(each.get("body", b"") for each in answer))
        except OSError as error:  # a full disk
            log.warning("an upload failed: %s", error.strerror or type(error).__name__)
            raise RefusedError(503, "There is no room for this upload.") from error
        for message in answer:
            await send(message)

    def _sweep(self) -> None:
        """Deletes what Gradio leaves behind of forms it refuses and parts it ignores."""
        for path in self._folder.iterdir():
            if path.is_file():
                path.unlink(missing_ok=True)

    def _note_upload(self, address: str, answer: bytes) -> None:
        try:
            paths = json.loads(answer)
        except ValueError:
            return
        for path in paths if isinstance(paths, list) else ():
            self._sessions.note_upload(address, Path(path))


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
    """The body of a request; raises RefusedError if it is too long or too slow."""
    body = b""
    try:
        with anyio.fail_after(limits.BODY_SECONDS):
            while True:
                message = await receive()
                body += message.get("body", b"")
                if len(body) > limits.MAX_BODY:
                    raise RefusedError(413, f"A call may have {limits.MAX_BODY} bytes.")
                if not message.get("more_body"):
                    return body
    except TimeoutError as error:
        raise RefusedError(408, "The request did not come in time.") from error


def _address(scope: Scope) -> str:
    return scope["client"][0] if scope.get("client") else ""
