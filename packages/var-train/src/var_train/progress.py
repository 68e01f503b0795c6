"""What a run shows and records while it works: a progress bar and ``metrics.jsonl``."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import Progress, TextColumn
from var_tokenizer import InputError
from var_transformer import progress_bar


class MetricsLog:
    """Appends one JSON object a line: ``{"stage", "step", "seconds", ...}``.

    ``seconds`` counts from when the log was opened. Raises InputError where the file cannot be
    written.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("w", buffering=1)
        except OSError as error:
            raise InputError(f"{path}: cannot write here: {error.strerror}") from error
        self._started = time.monotonic()

    def write(self, stage: str, step: int, **values: float | list[float]) -> None:
        seconds = round(time.monotonic() - self._started, 2)
        self._file.write(
            json.dumps({"stage": stage, "step": step, "seconds": seconds, **values}) + "\n"
        )

    def close(self) -> None:
        self._file.close()


class StepBar:
    """A progress bar over training steps with the loss, images a second and the time left."""

    def __init__(self, progress: Progress, title: str, steps: int) -> None:
        self._progress = progress
        self._task = progress.add_task(title, total=steps, loss="compiling", speed="")
        self._last = time.monotonic()
        self._rate = 0.0

    def advance(self, images: int, loss: float | None = None) -> None:
        now = time.monotonic()
        rate, self._last = images / max(now - self._last, 1e-9), now
        self._rate = 0.9 * self._rate + 0.1 * rate if self._rate else rate
        shown = "" if loss is None else f"loss {loss:.4f}"
        speed = f"{self._rate:.1f} images/s"
        self._progress.update(self._task, advance=1, loss=shown, speed=speed)


@contextmanager
def step_bar(title: str, steps: int) -> Iterator[StepBar]:
    """Shows a ``StepBar`` on stderr while the block runs."""
    with progress_bar(TextColumn("{task.fields[loss]}  {task.fields[speed]}")) as progress:
        yield StepBar(progress, title, steps)
