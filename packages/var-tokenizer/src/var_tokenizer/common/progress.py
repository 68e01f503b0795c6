"""The progress of a command: a bar on a terminal, elsewhere a line in the log now and then."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich import progress
from rich.console import Console

log = logging.getLogger(__name__)


def next_line(elapsed: float) -> float:
    """Seconds until the next line, ``elapsed`` seconds after the start.

    Every 5 s at first, then less and less often, and every 5 minutes from minute 25 on: about 30
    lines in the first half hour and 12 in each later hour, however many steps there are.
    """
    return min(max(5.0, elapsed / 5), 300.0)


class LoggedProgress(progress.Progress):
    """Rich's progress bar; if stderr is not a terminal, a log line for each task instead.

    A line holds the description, steps and total, the fields that are not empty (loss, speed),
    and the time left. A thread writes it, so lines keep coming during a long compilation.
    """

    def __init__(
        self, *columns: progress.ProgressColumn, silent: bool = False, transient: bool = False
    ) -> None:
        """silent: show and log nothing. transient: remove the bar when it is done."""
        console = Console(stderr=True)
        self._lines = not console.is_interactive and not silent
        super().__init__(
            *columns,
            console=console,
            transient=transient,
            disable=silent or self._lines,
            speed_estimate_period=600,  # seconds: steps may take a minute each
        )
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._said = False

    def start(self) -> None:
        super().start()
        if self._lines:
            self._thread = threading.Thread(target=self._log_lines, daemon=True)
            self._thread.start()

    def stop(self) -> None:
        if self._thread is not None:
            self._ended.set()
            self._thread.join()
            if self._said:
                self._log_now(ended=True)
        super().stop()

    def _log_lines(self) -> None:
        started = time.monotonic()
        while not self._ended.wait(next_line(time.monotonic() - started)):
            self._log_now()

    def _log_now(self, ended: bool = False) -> None:
        self._said = True
        for task in self.tasks:
            log.info("%s", line(task, ended))


def line(task: progress.Task, ended: bool = False) -> str:
    """The state of a task in words: its count in the field ``unit``, and its other fields.

    ended: whether the task is over.
    """
    fields = {name: str(value).strip() for name, value in task.fields.items()}
    unit = fields.pop("unit", "")
    parts = (
        [] if task.total is None else [f"{task.completed:.0f} of {task.total:.0f} {unit}".strip()]
    )
    parts += [value for value in fields.values() if value]
    left = task.time_remaining
    if not ended and left:
        parts.append(f"{duration(left)} left")
    else:
        parts.append(f"{'after ' * ended}{duration(task.elapsed or 0)}{' so far' * (not ended)}")
    return f"{task.description.strip()}: {', '.join(parts)}"


def duration(seconds: float) -> str:
    """``0:05``, ``12:30``, ``1:02:03``."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def progress_bar(
    *columns: progress.ProgressColumn, silent: bool = False, transient: bool = False
) -> LoggedProgress:
    """A bar on stderr: description, count, ``columns``, time taken and time left.

    If stderr is not a terminal, log lines take its place. silent: neither. transient: remove
    the bar when it is done.
    """
    return LoggedProgress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        *columns,
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(),
        silent=silent,
        transient=transient,
    )


@contextmanager
def working(on: str, silent: bool = False) -> Iterator[None]:
    """Shows what a block is doing and for how long, when nobody can tell how much is left."""
    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.TimeElapsedColumn(),
    )
    with LoggedProgress(*columns, silent=silent, transient=True) as bar:
        bar.add_task(on, total=None)
        yield
