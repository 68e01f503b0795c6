"""What the commands share: their start, their error line, and loading a pair of models."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import tyro
from rich.console import Console
from rich.logging import RichHandler
from var_tokenizer import InputError, Tokenizer

from var_transformer.generate import check_pair
from var_transformer.transformer import Transformer

Config = TypeVar("Config")

log = logging.getLogger("var_transformer")


def run_command(config_type: type[Config], module: str, action: Callable[[Config], None]) -> None:
    """Reads the command line into ``config_type`` and acts on it.

    Exits with 2 and one line where the input is unusable, and with 130 where it is interrupted.
    """
    # once MindSpore has compiled a graph, it makes a SIGTERM of Ctrl-C
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    handler = RichHandler(
        console=Console(stderr=True, soft_wrap=True), show_path=False, show_time=False
    )
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
    try:
        action(tyro.cli(config_type, prog=f"python -m {module}"))
    except InputError as error:
        log.error("%s", error)
        sys.exit(2)
    except KeyboardInterrupt:
        log.error("interrupted")
        sys.exit(130)


def load_pair(tokenizer: Path, model: Path) -> tuple[Transformer, Tokenizer]:
    """Both models of a pair; raises InputError unless the files are whole and belong together."""
    pair = Transformer.load(model), Tokenizer.load(tokenizer)
    check_pair(*pair)
    return pair


def class_names(path: str | os.PathLike[str], num_classes: int) -> list[str]:
    """The lines of a UTF-8 file, the n-th (from 0) names class n.

    Raises InputError for a file that is missing, not text, or of another number of lines.
    """
    try:
        names = [line.strip() for line in Path(path).read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable text file: {error}") from error
    if len(names) != num_classes:
        raise InputError(f"{path}: holds {len(names)} names; expected {num_classes}, the classes")
    return names


def class_number(text: str, num_classes: int, names: list[str] | None) -> int:
    """A class by number, or by its name or one of the synonyms that commas part in it.

    Raises InputError for an unknown class, or a name that several classes share.
    """
    text = text.strip()
    if text.isdecimal() and int(text) < num_classes:
        return int(text)
    found = [n for n, name in enumerate(names or []) if text.lower() in _synonyms(name)]
    if len(found) == 1 and text:
        return found[0]
    if found and text:
        raise InputError(f"class {text!r} names {found}; expected one of these numbers")
    what = "" if names is None else " or a name in the file of class names"
    raise InputError(f"class is {text!r}; expected 0 to {num_classes - 1}{what}")


def _synonyms(name: str) -> set[str]:
    return {name.lower(), *(part.strip().lower() for part in name.split(","))}
