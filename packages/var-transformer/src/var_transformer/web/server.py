"""The page's server: it listens, and ends cleanly on Ctrl-C and SIGTERM."""

import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import gradio as gr
import uvicorn
from var_tokenizer.common import InputError

from var_transformer.web import limits
from var_transformer.web.auth import LOOPBACK, Login
from var_transformer.web.middleware import Guard
from var_transformer.web.page import HEAD, mount
from var_transformer.web.sessions import Sessions
from var_transformer.web.streaming import Streamer


class Server(uvicorn.Server):
    """Serves a page at ``url``."""

    def __init__(
        self,
        page: gr.Blocks,
        streamer: Streamer,
        sessions: Sessions,
        folder: Path,
        host: str,
        port: int,
        allowed_hosts: Sequence[str] = (),
        login: Login | None = None,
    ) -> None:
        """Listens, so that a port in use is an InputError; ``run`` answers.

        host, port: to listen on; port 0 for any free one. allowed_hosts: names of this server
        besides ``host`` and the loopback names. login: None lets everyone in who reaches the page.
        """
        self._page, self._streamer = page, streamer
        app = mount(page)
        hosts = {name.lower() for name in (*LOOPBACK, host, *allowed_hosts)}
        self._gradio = app.routes[-1].app
        self._guard = Guard(app, page, folder, sessions, frozenset(hosts), login, HEAD)
        super().__init__(
            uvicorn.Config(
                self._guard,
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=limits.ENDING_SECONDS,
            )
        )
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._socket = socket.create_server((host, port), family=family, backlog=128)
        except OSError as error:
            raise InputError(f"host is {host!r} and port is {port}: {error}") from error
        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._socket.getsockname()[1]}/"

    def run(self) -> None:
        """Answers until the process is interrupted, or ``should_exit`` is set."""
        with suppress(KeyboardInterrupt):  # uvicorn raises the signal again when it has ended
            super().run(sockets=[self._socket])

    async def shutdown(self, sockets: list[Any] | None = None) -> None:
        """Ends the jobs and the streams to visitors, then the rest."""
        self._streamer.close()
        self._page._queue.close()
        self._page.is_running = False
        self._gradio.stop_event.set()
        self._guard.closing.set()
        await super().shutdown(sockets)
