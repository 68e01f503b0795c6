"""What the commands of all packages share: their log, their exit codes and their settings."""

import ast
import logging
import os
import signal
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import TypeVar

import mindspore
import tyro

from var_tokenizer.common.errors import InputError, quoted

Config = TypeVar("Config")

UNUSABLE, INTERRUPTED, UNREAD = 2, 130, 141
"""The exit codes of all commands, beside 0 and what a command says of its own."""

PACKAGES = ("var_tokenizer", "var_transformer", "var_train", "var_convert")

_AGAIN = 0.1  # seconds
_MINDSPORE = f"{Path(mindspore.__file__).parent}/"

log = logging.getLogger(__name__)


class _StderrHandler(logging.Handler):
    """Writes to what ``sys.stderr`` is at the time: a progress bar replaces it while it runs."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(f"{self.format(record)}\n")
            sys.stderr.flush()
        except Exception:  # as every handler of logging: a closed stderr stops no training
            self.handleError(record)


class _OneLine(logging.Formatter):
    """``LEVEL: message``, in one line that hides nothing, whatever a library's error holds."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        text = record.message
        record.message = "".join(quoted(text[i : i + 1000]) for i in range(0, len(text), 1000))
        return super().formatMessage(record)


def start_log() -> None:
    """One format for all commands: ``LEVEL: message``, a line each, on stderr.

    Other libraries are heard from warnings on.
    """
    handler = _StderrHandler()
    handler.setFormatter(_OneLine("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for name in PACKAGES:
        logging.getLogger(name).setLevel(logging.INFO)
    # The reader of pictures says itself what is wrong with one, and names the file.
    warnings.filterwarnings("ignore", module=r"PIL\.")


@contextmanager
def exit_codes(interrupted: str = "interrupted") -> Iterator[None]:
    """Runs the block as a command: sets the log up, and ends the process as its user expects.

    Exits with 2 and one line where the input is unusable (InputError), and with 130 and the line
    ``interrupted`` at Ctrl-C or SIGTERM. These two cannot be told apart: MindSpore makes a
    SIGTERM of Ctrl-C whenever it has run a graph. What MindSpore is at (a compilation) ends first.
    With 141, as shells have it, where nobody reads what it prints any more.
    """
    start_log()
    came, waiting = [], []

    def interrupt(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if not _in_mindspore(frame):
            signal.default_int_handler(number, frame)
        # a compilation would end in pages of MindSpore's errors and a folder rank_0: comes again
        timer = threading.Timer(_AGAIN, os.kill, (os.getpid(), signal.SIGTERM))
        timer.daemon = True
        waiting[:] = [timer]
        timer.start()

    before = {n: signal.signal(n, interrupt) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except InputError as error:
        log.error("%s", error)
        sys.exit(UNUSABLE)
    except KeyboardInterrupt:
        log.error("%s", interrupted)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # as of `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's last flush
        sys.exit(UNREAD)
    except Exception:
        if not came:
            raise
        log.error("%s", interrupted)  # and the error that became of it is not the user's
        sys.exit(INTERRUPTED)
    finally:
        for timer in waiting:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def _in_mindspore(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith(_MINDSPORE):
            return True
        frame = frame.f_back
    return False


def read_settings(kind: type[Config], **options: object) -> Config:
    """``tyro.cli(kind, ...)``, but InputErrors of the dataclasses are raised.

    tyro would frame each and wrap it to the terminal's width, and nothing could read it in a log.
    """
    try:
        with redirect_stderr(StringIO()):  # console_outputs does not hold back what it frames
            return tyro.cli(kind, **options, console_outputs=False)
    except SystemExit as end:
        cause = end.__context__
        while cause is not None:
            if isinstance(cause, InputError):
                raise cause from None
            cause = cause.__context__
    return tyro.cli(kind, **options)  # to say what is wrong, or the help


def run_command(
    config_type: type[Config],
    module: str,
    action: Callable[[Config], None],
    interrupted: str = "interrupted",
) -> None:
    """Reads the command line into ``config_type`` and acts on it; see ``exit_codes``."""
    with exit_codes(interrupted):
        action(read_settings(config_type, prog=f"python -m {module}"))


def list_commands(package: str, modules: Sequence[str]) -> None:
    """Writes to stdout what ``python -m PACKAGE.MODULE`` does for each of ``modules``.

    That is the first sentence of the module's docstring, behind its name.
    """
    lines = [f"The commands of {package}; each explains itself with --help:", ""]
    for module in modules:
        path = Path(find_spec(f"{package}.{module}").origin)
        path = path.with_name("__main__.py") if path.name == "__init__.py" else path
        about = ast.get_docstring(ast.parse(path.read_text("utf-8"))).partition("\n\n")[0]
        about = about.rpartition("``: ")[2]
        about = textwrap.fill(about[0].upper() + about[1:], 76)
        lines += [f"python -m {package}.{module}", textwrap.indent(about, "    ")]
    sys.stdout.write("\n".join(lines) + "\n")
