"""What a run shows and records: a bar, its settings, ``metrics.jsonl``, TensorBoard, pictures."""

import json
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from rich.progress import Progress, TextColumn
from tensorboardX import SummaryWriter
from var_tokenizer.common import InputError, quoted, replacing
from var_tokenizer.common.progress import progress_bar

from var_train.parallel import workers

log = logging.getLogger(__name__)

Value = float | list[float] | np.ndarray


class MetricsLog:
    """Records the values of steps in ``FOLDER/metrics.jsonl`` and for TensorBoard.

    A line of ``metrics.jsonl`` is a JSON object ``{"stage", "step", "seconds", ...}``, where
    ``seconds`` counts the time of all processes that wrote to the file. Validations have the
    stage "validation" and name the stage that they measure as "of". Pictures, uint8 (Y, X, 3),
    become files in ``FOLDER/pictures``. TensorBoard reads ``FOLDER/tensorboard``.

    Worker 0 alone writes. Raises InputError where the folder cannot be written.
    """

    def __init__(self, folder: Path, resume: bool = False) -> None:
        """resume: keep what an earlier process recorded."""
        self.folder = Path(folder)
        self._path = self.folder / "metrics.jsonl"
        self._writes = workers.rank() == 0
        self._boards: dict[str, SummaryWriter] = {}
        self._file = None
        if not self._writes:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a" if resume else "w", buffering=1)
        except OSError as error:
            raise InputError(
                f"{quoted(self._path)}: cannot write here: {error.strerror}"
            ) from error
        self._started = time.monotonic() - max(
            (line["seconds"] for line in self._lines()), default=0
        )

    def write(self, stage: str, step: int, **values: Value) -> None:
        """Records the values of one training step."""
        self._record(stage, stage, step, values)

    def write_validation(self, stage: str, step: int, **values: Value) -> None:
        """Records a validation after ``step``."""
        self._record("validation", stage, step, values)

    def rewind(self, stage: str, step: int) -> None:
        """Forgets what is on record of ``stage`` from ``step`` on: these steps come again."""
        if not self._writes:
            return
        kept = [
            line
            for line in self._lines()
            if line.get("of", line["stage"]) != stage or line["step"] < step
        ]
        self._file.close()
        with replacing(self._path) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._file = self._path.open("a", buffering=1)
        self._board(stage, step)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        for board in self._boards.values():
            board.close()

    def _record(self, kind: str, stage: str, step: int, values: dict[str, Value]) -> None:
        if not self._writes:
            return
        numbers = {k: v for k, v in values.items() if not isinstance(v, np.ndarray)}
        seconds = round(time.monotonic() - self._started, 2)
        line = {"stage": kind, "step": step, "seconds": seconds, **numbers}
        if kind != stage:
            line["of"] = stage
        board = self._board(stage)
        prefix = "" if kind == stage else f"{kind}/"
        try:
            self._file.write(json.dumps(line) + "\n")
            for name, value in values.items():
                if isinstance(value, np.ndarray):
                    path = self.folder / "pictures" / f"{stage}-{name}-{step + 1:08d}.png"
                    with replacing(path) as temporary:
                        Image.fromarray(value).save(temporary, "PNG")
                    board.add_image(prefix + name, value, step, dataformats="HWC")
                elif isinstance(value, list):
                    for k, item in enumerate(value):
                        board.add_scalar(f"{prefix}{name}/{k}", item, step)
                else:
                    board.add_scalar(prefix + name, value, step)
        except OSError as error:
            raise InputError(f"{quoted(self.folder)}: cannot write: {error.strerror}") from error

    def _board(self, stage: str, purge_step: int | None = None) -> SummaryWriter:
        if stage not in self._boards:
            folder = str(self.folder / "tensorboard" / stage)
            self._boards[stage] = SummaryWriter(folder, purge_step=purge_step, flush_secs=10)
        return self._boards[stage]

    def _lines(self) -> list[dict]:
        """What the file holds; a line that a killed process left unfinished does not count."""
        lines = []
        for text in self._path.read_text().splitlines():
            try:
                lines.append(json.loads(text))
            except (ValueError, RecursionError):
                continue
        return lines


class StepBar:
    """Progress over training steps with the loss, images a second and the time left."""

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
        """Shows ``what`` in place of the loss while the block runs."""
        self._progress.update(self._task, loss=what)
        yield
        self._progress.update(self._task, loss=self._loss)
        self._last = time.monotonic()


@contextmanager
def step_bar(title: str, steps: int, done: int = 0, unit: str = "steps") -> Iterator[StepBar]:
    """Shows a ``StepBar`` on stderr while the block runs, or logs lines, on worker 0."""
    columns = TextColumn("{task.fields[loss]}  {task.fields[speed]}")
    with progress_bar(columns, silent=workers.rank() > 0) as progress:
        yield StepBar(progress, title, steps, done, unit)


def record_settings(folder: Path, settings: Mapping[str, object]) -> None:
    """Writes ``FOLDER/settings.json``, and logs what an earlier command there had otherwise.

    settings: of the whole run; what JSON does not know is written as text.
    """
    path = folder / "settings.json"
    settings = json.loads(json.dumps(settings, default=str))
    try:
        before = _flat(json.loads(path.read_text()))
    except (OSError, ValueError, RecursionError):
        before = {}
    now = _flat(settings)
    changed = [name for name in now if name in before and before[name] != now[name]]
    if changed:
        differences = (
            f"{name} was {json.dumps(before[name])} and is {json.dumps(now[name])}"
            for name in changed
        )
        log.info("settings changed since the last command here: %s", "; ".join(differences))
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(settings, indent=2) + "\n")


def _flat(settings: object, prefix: str = "") -> dict[str, object]:
    """``{"loop": {"keep": 3}}`` as ``{"loop.keep": 3}``."""
    if not isinstance(settings, dict):
        return {prefix: settings}
    flat: dict[str, object] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}.{name}" if prefix else name)
    return flat
