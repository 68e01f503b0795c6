"""``python -m var_transformer.serve``: serves a web page for a trained model."""

import logging
import signal
from dataclasses import dataclass

from var_tokenizer.common import InputError, check_integer, check_number
from var_tokenizer.common.command import run_command
from var_tokenizer.common.progress import working

from var_transformer.commands.graph_cache import graph_cache
from var_transformer.commands.options import PairConfig
from var_transformer.generation.generate import generate
from var_transformer.web import limits
from var_transformer.web.auth import LOOPBACK, Login
from var_transformer.web.files import private_folder
from var_transformer.web.sessions import Sessions
from var_transformer.web.streaming import Streamer

log = logging.getLogger("var_transformer")


@dataclass(frozen=True, kw_only=True)
class ServeConfig(PairConfig):
    """Serve a web page: generate pictures, watch them sharpen, edit them with a brush.

    Needs the extra [web]. Memory holds one pair of models, which draws for one visitor at a time;
    the others wait in a queue. docs/serving.md says what the server protects against, and
    describes its API.
    """

    host: str = "127.0.0.1"
    """The address to listen on. 0.0.0.0 lets other machines in: see --auth and --allowed-host."""
    port: int = 7860
    """The port to listen on."""
    allowed_host: tuple[str, ...] = ()
    """Names by which browsers reach the page, besides --host and localhost. Requests under other
    names are refused."""
    auth: str | None = None
    """USER:FILE asks visitors for the user's name and the password in the first line of the file,
    which nobody else may be able to read."""
    max_images: int = limits.DEFAULT_IMAGES
    """Pictures that a visitor may ask for at once."""
    max_seconds: float = limits.DEFAULT_SECONDS
    """Seconds that a generation may take; then it stops before its next scale."""

    def __post_init__(self) -> None:
        """Raises InputError for a field out of range."""
        super().__post_init__()
        check_integer("port", self.port, 1, 65535)
        check_integer("max_images", self.max_images, 1, limits.MAX_IMAGES)
        check_number("max_seconds", self.max_seconds, above=0, finite=False)
        for name in self.allowed_host:
            if not name or set(name) & set("/:@* "):
                raise InputError(
                    f"allowed_host is {name!r}; expected a name such as lab.example, without a port"
                )


def run(config: ServeConfig) -> None:
    """Serves the page until it is interrupted; raises InputError for unusable settings."""
    login = None if config.auth is None else Login.read(config.auth)
    with private_folder() as folder:
        try:
            from var_transformer.web.page import Handlers, make_page
            from var_transformer.web.server import Server
        except ModuleNotFoundError as error:
            raise InputError(
                f"{error}; expected the extra: pip install 'var-transformer[web]'"
            ) from error
        model, tokenizer, names = config.load()
        streamer, sessions = Streamer(len(tokenizer.schedule), config.max_seconds), Sessions()
        pair, most = (model, tokenizer), config.max_images
        page = make_page(Handlers(*pair, names, most, streamer, sessions, folder))
        server = Server(
            page, streamer, sessions, folder, config.host, config.port, config.allowed_host, login
        )
        if config.host not in LOOPBACK and login is None:
            log.warning(
                "--host %s: everyone who can reach this machine may use the page; "
                "--auth USER:FILE asks for a password",
                config.host,
            )
        if config.host in ("0.0.0.0", "::") and not config.allowed_host:
            log.warning(
                "--host %s: the page answers to the name localhost alone; --allowed-host NAME adds "
                "the machine's",
                config.host,
            )
        log.info("serving %s; Ctrl-C ends it", server.url)

        def compile_graphs() -> None:
            """Draws a picture and discards it, so that the first visitor does not wait."""
            models = [model.config, tokenizer.config]
            kind = {"backend": model.backend, "low_memory": config.low_memory}
            graphs = graph_cache(command="serve", models=models, **kind)
            with graphs, working("compiling for the first visitor"):
                generate(model, tokenizer, [0])
            log.info("the graphs are compiled")

        compiling = streamer.submit(compile_graphs)
        compiling.add_done_callback(lambda done: done.cancelled() or done.result())  # logs errors
        server.run()


def main() -> None:
    """The command; see ``run_command``."""
    hangup = getattr(signal, "SIGHUP", None)  # when the terminal closes; not on Windows
    if hangup is not None and signal.getsignal(hangup) is signal.SIG_DFL:  # nohup ignores it
        signal.signal(hangup, lambda *_: signal.raise_signal(signal.SIGTERM))
    run_command(ServeConfig, "python -m var_transformer.serve", run)


if __name__ == "__main__":
    main()
