"""``python -m var_transformer.serve``: serves a web page for a trained model."""

import logging
import signal
import stat
from dataclasses import dataclass
from pathlib import Path

from var_tokenizer.common import InputError, check_integer, check_number
from var_tokenizer.common.command import run_command
from var_tokenizer.common.progress import working

from var_transformer.commands.graph_cache import graph_cache
from var_transformer.commands.options import PairConfig
from var_transformer.generation.generate import generate
from var_transformer.web.files import private_folder
from var_transformer.web.sessions import Visits
from var_transformer.web.streaming import Streamer

log = logging.getLogger("var_transformer")

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_SHORTEST = 8  # characters of a password


@dataclass(frozen=True, kw_only=True)
class ServeConfig(PairConfig):
    """Serve a web page: generate pictures, watch them sharpen, edit them with a brush.

    Needs the extra [web]. One pair of models is held in memory, and one visitor's pictures are
    drawn at a time; the others wait in a queue. docs/serving.md says what the server protects
    against, and has its API.
    """

    host: str = "127.0.0.1"
    """The address to listen on. 0.0.0.0 lets other machines in: see --auth and --allowed-host."""
    port: int = 7860
    """The port to listen on."""
    allowed_host: tuple[str, ...] = ()
    """Names by which browsers reach the page, beside --host and localhost. A request by another
    name is refused."""
    auth: str | None = None
    """USER:FILE asks visitors for the user's name and the password in the first line of the file,
    which others may not be able to read."""
    max_images: int = 8
    """Pictures that a visitor may ask for at once."""
    max_seconds: float = 120.0
    """Seconds that a generation may take; it is stopped before the next scale."""

    def __post_init__(self) -> None:
        """Raises InputError for a field out of range."""
        check_integer("port", self.port, 1, 65535)
        check_integer("max_images", self.max_images, 1, 64)
        check_number("max_seconds", self.max_seconds, above=0, finite=False)
        for name in self.allowed_host:
            if not name or set(name) & set("/:@* "):
                raise InputError(
                    f"allowed_host is {name!r}; expected a name such as lab.example, without a port"
                )

    def login(self) -> tuple[str, str] | None:
        """(user, password) that visitors must know; raises InputError for an unusable ``auth``."""
        if self.auth is None:
            return None
        user, _, file = self.auth.partition(":")
        if not user or not file:
            raise InputError(f"auth is {self.auth!r}; expected USER:FILE")
        try:
            if Path(file).stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise InputError(f"{file}: others can read this password; expected chmod 600")
            lines = Path(file).read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file}: not a readable text file: {error}") from error
        if not lines or len(lines[0]) < _SHORTEST:
            raise InputError(
                f"{file}: the password in the first line is too short; "
                f"expected at least {_SHORTEST} characters"
            )
        return user, lines[0]


def run(config: ServeConfig) -> None:
    """Serves the page until it is interrupted; raises InputError for unusable settings."""
    login = config.login()
    with private_folder() as folder:
        try:
            from var_transformer.web.middleware import Login
            from var_transformer.web.page import make_page
            from var_transformer.web.server import Server
        except ModuleNotFoundError as error:
            raise InputError(
                f"{error}; expected the extra: pip install 'var-transformer[web]'"
            ) from error
        model, tokenizer, names = config.load()
        streamer, visits = Streamer(len(tokenizer.schedule), config.max_seconds), Visits()
        page = make_page(model, tokenizer, names, config.max_images, streamer, visits, folder)
        server = Server(
            page,
            streamer,
            visits,
            folder,
            config.host,
            config.port,
            config.allowed_host,
            None if login is None else Login(*login),
        )
        if config.host not in _LOOPBACK and login is None:
            log.warning(
                "--host %s: everyone who can reach this machine may use the page; "
                "--auth USER:FILE asks for a password",
                config.host,
            )
        if config.host in ("0.0.0.0", "::") and not config.allowed_host:
            log.warning(
                "--host %s: the page answers to localhost alone; --allowed-host NAME names the "
                "machine as browsers do",
                config.host,
            )
        log.info("serving %s; Ctrl-C ends it", server.url)

        def compile_graphs() -> None:
            """Draws a picture for nobody, so that the first visitor waits no longer than others."""
            graphs = graph_cache(command="serve", models=[model.config, tokenizer.config])
            with graphs, working("compiling for the first visitor"):
                generate(model, tokenizer, [0])
            log.info("the graphs are compiled")

        compiling = streamer.submit(compile_graphs)
        # logs an error
        compiling.add_done_callback(lambda done: done.cancelled() or done.result())
        server.run()


def main() -> None:
    """The command: exits with 2 and one line where the input is unusable."""
    hangup = getattr(signal, "SIGHUP", None)  # of a terminal that is closed; not on Windows
    if hangup is not None and signal.getsignal(hangup) is signal.SIG_DFL:  # nohup ignores it
        signal.signal(hangup, lambda *_: signal.raise_signal(signal.SIGTERM))
    run_command(ServeConfig, "python -m var_transformer.serve", run)


if __name__ == "__main__":
    main()
