"""What the commands of all packages share: log, exit codes, and settings from the command line."""

import ast
import errno
import logging
import os
import signal
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from traceback import walk_stack
from types import FrameType
from typing import Any, TypeVar

import mindspore
import tyro

from var_tokenizer.common.cann import warn_of_cann
from var_tokenizer.common.errors import InputError, quoted
from var_tokenizer.common.memory import is_out_of_memory
from var_tokenizer.common.versions import check_mindspore
from var_tokenizer.help_only import asks_for_help

Config = TypeVar("Config")

UNUSABLE, INTERRUPTED, UNREAD = 2, 130, 141
"""The exit codes that all commands share, besides 0."""

PACKAGES = ("var_tokenizer", "var_transformer", "var_train", "var_convert")

_FULL = (errno.ENOSPC, errno.EDQUOT)
_RETRY = 0.1  # seconds before an interrupt that MindSpore would mishandle is raised again
_MINDSPORE = f"{Path(mindspore.__file__).parent}/"

log = logging.getLogger(__name__)


class _StderrHandler(logging.Handler):
    """Writes to the current ``sys.stderr``, which a progress bar replaces while it runs."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(f"{self.format(record)}\n")
            sys.stderr.flush()
        except Exception:  # like every logging handler: a closed stderr must not stop a run
            self.handleError(record)


class _OneLine(logging.Formatter):
    """``LEVEL: message`` in one line; control characters in a message are escaped."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        text = record.message
        record.message = "".join(quoted(text[i : i + 1000]) for i in range(0, len(text), 1000))
        return super().formatMessage(record)


def start_log() -> None:
    """Logs to stderr as ``LEVEL: message``: our records from INFO up, others from WARNING up."""
    handler = _StderrHandler()
    handler.setFormatter(_OneLine("%(levelname)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    for name in PACKAGES:
        logging.getLogger(name).setLevel(logging.INFO)
    # our own picture reader reports what is wrong with a picture, and names the file
    warnings.filterwarnings("ignore", module=r"PIL\.")


@contextmanager
def exit_codes(interrupted: str = "interrupted") -> Iterator[None]:
    """Runs the block as a command: starts the log, and turns errors into exit codes.

    It begins with a warning where this machine's NPU cannot be used.

    2 and one line for unusable input (InputError), a full disk and too little memory. 130 and the
    line ``interrupted`` for Ctrl-C or SIGTERM, which cannot be told apart: MindSpore turns Ctrl-C
    into SIGTERM once it has run a graph. A compilation in progress finishes first. 141, as in
    shells, if nobody reads the output any more.
    """
    start_log()
    received: list[int] = []
    waiting: list[threading.Timer] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if not any(f.f_code.co_filename.startswith(_MINDSPORE) for f, _ in walk_stack(frame)):
            signal.default_int_handler(number, frame)
        # an interrupted compilation prints pages of errors and leaves a folder rank_0: try later
        timer = threading.Timer(_RETRY, os.kill, (os.getpid(), signal.SIGTERM))
        timer.daemon = True
        waiting[:] = [timer]
        timer.start()

    before = {n: signal.signal(n, interrupt) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        check_mindspore()
        if not asks_for_help(sys.argv[1:]):  # a stand-in of MindSpore knows no CANN
            warn_of_cann()
        try:
            yield
        finally:
            if sys.stdout:  # else Python's last flush would find that it cannot be written
                sys.stdout.flush()
    except InputError as error:
        if received:  # what an interrupt broke, such as a file half written, is no unusable input
            log.error("%s", interrupted)
            sys.exit(INTERRUPTED)
        log.error("%s", error)
        sys.exit(UNUSABLE)
    except BrokenPipeError:  # for example, `--help | head`
        _drop_output()
        sys.exit(UNREAD)
    except (KeyboardInterrupt, Exception) as error:
        # an error after an interrupt is caused by it, and would mislead the user
        if not received and not isinstance(error, KeyboardInterrupt):
            if is_out_of_memory(error):
                said = (str(error).strip().splitlines() or ["Python has none left"])[0]
                log.error("out of memory (%s); expected more of it, or smaller batches", said)
                sys.exit(UNUSABLE)
            if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
                name = quoted(error.filename or "")
                log.error("%s: %s; expected a shorter name", name, error.strerror)
                sys.exit(UNUSABLE)
            if not isinstance(error, OSError) or error.errno not in _FULL:
                raise
            _drop_output()
            log.error("%s; expected room for what is written", error.strerror)
            sys.exit(UNUSABLE)
        log.error("%s", interrupted)
        sys.exit(INTERRUPTED)
    finally:
        for timer in waiting:
            timer.cancel()
        for number, handler in before.items():
            signal.signal(number, handler)


def _drop_output() -> None:
    """Gives what is left of stdout to nobody, so that Python's last flush cannot fail."""
    if sys.stdout:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def read_settings(kind: type[Config] | Mapping[str, type[Config]], **options: Any) -> Config:  # noqa: ANN401
    """Builds a ``kind`` from the command line; if ``kind`` is a mapping, by its subcommand.

    options: those of ``tyro.cli``. Raises the InputErrors of the classes. tyro would frame them
    and wrap them to the terminal's width, so that searching a log would not find them.
    """

    def parse() -> Config:
        if isinstance(kind, Mapping):
            return tyro.extras.subcommand_cli_from_dict(dict(kind), **options)
        return tyro.cli(kind, **options)

    try:
        with redirect_stderr(StringIO()), redirect_stdout(StringIO()):
            return parse()
    except SystemExit as end:
        cause = end.__context__
        while cause is not None:
            if isinstance(cause, InputError):
                raise cause from None
            cause = cause.__context__
    return parse()  # prints what is wrong, or the help


def run_command(
    kind: type[Config] | Mapping[str, type[Config]],
    prog: str,
    action: Callable[[Config], int | None],
    interrupted: str = "interrupted",
    **options: Any,  # noqa: ANN401
) -> None:
    """Reads the command line of ``prog`` and acts on it; see ``read_settings`` and ``exit_codes``.

    action: may return an exit code of its own.
    """
    with exit_codes(interrupted):
        settings = read_settings(kind, prog=prog, **options)
        if code := action(settings):
            sys.exit(code)


def list_commands(package: str, modules: Sequence[str]) -> None:
    """Writes to stdout what ``python -m PACKAGE.MODULE`` does, for each of ``modules``.

    That is the first paragraph of the module's docstring.
    """
    lines = [f"The commands of {package}; each explains itself with --help:", ""]
    for module in modules:
        spec = find_spec(f"{package}.{module}")
        assert spec is not None and spec.origin is not None
        path = Path(spec.origin)
        path = path.with_name("__main__.py") if path.name == "__init__.py" else path
        about = (ast.get_docstring(ast.parse(path.read_text("utf-8"))) or "").partition("\n\n")[0]
        about = about.rpartition("``: ")[2]
        about = textwrap.fill(about[0].upper() + about[1:], 76)
        lines += [f"python -m {package}.{module}", textwrap.indent(about, "    ")]
    with exit_codes():
        sys.stdout.write("\n".join(lines) + "\n")
