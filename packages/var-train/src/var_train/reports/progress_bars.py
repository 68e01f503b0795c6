"""Progress bars of worker 0: on a terminal a bar, elsewhere lines in the log."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import Progress, TextColumn
from var_tokenizer.common import quoted
from var_tokenizer.common.progress import progress_bar

from var_train.parallel import workers


class StepBar:
    """Progress over training steps with the loss, images per second and the time left."""

    def __init__(self, progress: Progress, title: str, steps: int, done: int, unit: str) -> None:
        self._progress = progress
        self._task = progress.add_task(
            title, total=steps, completed=done, loss="compiling", speed="", unit=unit
        )
        self._last = time.monotonic()
        self._rate = 0.0
        self._loss = ""

    def advance(self, images: int, loss: float | None = None, steps: int = 1) -> None:
        now = time.monotonic()
        rate, self._last = images / max(now - self._last, 1e-9), now
        self._rate = 0.9 * self._rate + 0.1 * rate if self._rate else rate
        self._loss = "" if loss is None else f"loss {loss:.4f}"
        speed = f"{self._rate:.1f} images/s"
        self._progress.update(self._task, advance=steps, loss=self._loss, speed=speed)

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Shows ``what`` instead of the loss while the block runs."""
        self._progress.update(self._task, loss=what)
        yield
        self._progress.update(self._task, loss=self._loss)
        self._last = time.monotonic()


@contextmanager
def step_bar(title: str, steps: int, done: int = 0, unit: str = "steps") -> Iterator[StepBar]:
    """Shows a ``StepBar`` while the block runs. done: steps of an earlier process."""
    columns = TextColumn("{task.fields[loss]}  {task.fields[speed]}")
    with progress_bar(columns, silent=workers.rank() > 0) as progress:
        yield StepBar(progress, title, steps, done, unit)


@contextmanager
def counted(total: int, description: str, unit: str) -> Iterator[Callable[[], None]]:
    """Shows a bar while the block runs; the block calls what this yields ``total`` times."""
    with progress_bar(silent=workers.rank() > 0, transient=True) as bar:
        task = bar.add_task(quoted(description), total=total, unit=unit)
        yield lambda: bar.advance(task)
