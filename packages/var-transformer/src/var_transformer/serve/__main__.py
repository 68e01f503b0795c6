"""``python -m var_transformer.serve``: serves a web page for a trained model."""

from dataclasses import dataclass
from pathlib import Path

from var_tokenizer import InputError

from var_transformer.classes import names_of
from var_transformer.command import load_pair, log, run_command
from var_transformer.generate import generate
from var_transformer.graph_cache import graph_cache
from var_transformer.progress import working
from var_transformer.serve.streaming import Streamer


@dataclass(frozen=True)
class Serve:
    """Serve a web page: generate pictures, watch them sharpen, edit them with a brush.

    Needs the extra [web]. One pair of models is held in memory, and one visitor's pictures are
    drawn at a time; the others wait in a queue.
    """

    tokenizer: Path
    """The tokenizer, a .safetensors file."""
    model: Path
    """The transformer, a .safetensors file."""
    class_names: Path | None = None
    """A text file whose n-th line, from 0, names class n; commas part synonyms."""
    host: str = "127.0.0.1"
    """The address to listen on. 0.0.0.0 lets other machines in; there is no password."""
    port: int = 7860
    """The port to listen on."""
    max_images: int = 8
    """Pictures that a visitor may ask for at once."""
    max_seconds: float = 120.0
    """Seconds that a generation may take; it is stopped before the next scale."""

    def check(self) -> None:
        """Raises InputError for a field out of range."""
        for name, least, most in (("port", 1, 65535), ("max_images", 1, 64)):
            if not least <= getattr(self, name) <= most:
                raise InputError(f"{name} is {getattr(self, name)}; expected {least} to {most}")
        if not self.max_seconds > 0:
            raise InputError(f"max_seconds is {self.max_seconds}; expected above 0")


def run(config: Serve) -> None:
    """Serves the page until it is interrupted; raises InputError for unusable settings."""
    config.check()
    try:
        from var_transformer.serve.page import launch, make_page
    except ModuleNotFoundError as error:
        raise InputError(
            f"{error}; expected the extra: pip install 'var-transformer[web]'"
        ) from error
    model, tokenizer = load_pair(config.tokenizer, config.model)
    names = names_of(model, config.class_names)
    streamer = Streamer(len(tokenizer.schedule), config.max_seconds)
    page = make_page(model, tokenizer, names, config.max_images, streamer)
    log.info("serving %s; Ctrl-C ends it", launch(page, config.host, config.port))

    def compile_graphs() -> None:
        """Draws a picture for nobody, so that the first visitor's takes no longer than others."""
        graphs = graph_cache(command="serve", models=[model.config, tokenizer.config])
        with graphs, working("compiling for the first visitor"):
            generate(model, tokenizer, [0])
        log.info("the graphs are compiled")

    compiling = streamer.submit(compile_graphs)
    compiling.add_done_callback(lambda done: done.result())  # logs an error
    page.block_thread()


def main() -> None:
    """The command; see ``exit_codes`` for how it ends."""
    run_command(Serve, "var_transformer.serve", run)


if __name__ == "__main__":
    main()
