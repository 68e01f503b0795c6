"""The log of a run's numbers and pictures: ``metrics.jsonl`` and TensorBoard."""

import atexit
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from var_tokenizer.common import InputError, quoted, remove_leftovers, save_png

from var_train.parallel import workers
from var_train.reports.metrics_file import MetricsFile

if TYPE_CHECKING:
    from var_train.reports.tensorboard import Board

Value = float | str | list[float] | list[int] | np.ndarray


class MetricsLog:
    """Records the values of steps in ``FOLDER/metrics.jsonl`` and for TensorBoard.

    A line of ``metrics.jsonl`` is a JSON object ``{"stage", "step", "seconds", ...}``; "seconds"
    counts the time of all processes that wrote to the file. A validation has the stage
    "validation" and names the stage that it measures as "of". Settings that a later command
    changed are a line of the stage "settings", without a step. Pictures, uint8 (Y, X, 3), become
    files in ``FOLDER/pictures``. TensorBoard reads ``FOLDER/tensorboard``.

    Only worker 0 writes. Raises InputError if the folder cannot be written.
    """

    def __init__(self, folder: Path, resume: bool = False) -> None:
        """resume: keep what an earlier process recorded."""
        self.folder = Path(folder)
        path = self.folder / "metrics.jsonl"
        self._boards: dict[str, Board] = {}
        self._file: MetricsFile | None = None  # of worker 0
        if workers.rank() > 0:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = MetricsFile(path, resume)
            self._started = time.monotonic() - self._file.seconds()
        except OSError as error:
            raise InputError(f"{quoted(path)}: cannot write here: {error.strerror}") from error
        atexit.register(self.close)  # a run may end with an exception
        remove_leftovers(self.folder / "pictures")

    def write(self, stage: str, step: int, **values: Value) -> None:
        """Records the values of one training step."""
        self._record(stage, stage, step, values)

    def write_validation(self, stage: str, step: int, **values: Value) -> None:
        """Records a validation after ``step``."""
        self._record("validation", stage, step, values)

    def write_changes(
        self, changed: Mapping[str, tuple[object, object]], done: Mapping[str, int | None]
    ) -> None:
        """Records settings that changed, if any: old and new value by name.

        done: the finished steps of each stage that goes on; None if it begins.
        """
        if self._file is None or not changed:
            return
        line = {"stage": "settings", "seconds": self._seconds(), "done": done, "changed": changed}
        with self._writing():
            self._file.append(line)

    def rewind(self, stage: str, step: int, pending: bool = False) -> None:
        """Removes the lines of ``stage`` from ``step`` on: these steps will be repeated.

        pending: so will the validation after the step before.
        """
        if self._file is None:
            return
        with self._writing():
            self._file.rewind(stage, step, pending)
            self._board(stage, step)

    @contextmanager
    def complete(self) -> Iterator[None]:
        """When the block has ended, no matter how, TensorBoard can read all that was recorded.

        A process may end there without what Python does at exit (``workers.leaving``).
        """
        try:
            yield
        finally:
            with suppress(OSError):  # of a full disk, which the write before has reported
                for board in self._boards.values():
                    board.flush()

    def close(self) -> None:
        with suppress(OSError):  # of a full disk, which the write before has reported
            if self._file is not None:
                self._file.close()
            while self._boards:
                self._boards.popitem()[1].close()

    def _record(self, kind: str, stage: str, step: int, values: dict[str, Value]) -> None:
        if self._file is None:
            return
        numbers = {k: v for k, v in values.items() if not isinstance(v, np.ndarray)}
        line = {"stage": kind, "step": step, "seconds": self._seconds(), **numbers}
        if kind != stage:
            line["of"] = stage
        prefix = "" if kind == stage else f"{kind}/"
        with self._writing():
            self._file.append(line)
            board = self._board(stage)
            for name, value in values.items():
                if isinstance(value, np.ndarray):
                    path = self.folder / "pictures" / f"{stage}-{name}-{step + 1:08d}.png"
                    save_png(value, path)
                board.add(prefix + name, value, step)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(f"{quoted(self.folder)}: cannot write: {error.strerror}") from error

    def _seconds(self) -> float:
        return round(time.monotonic() - self._started, 2)

    def _board(self, stage: str, first_step: int = 0) -> "Board":
        from var_train.reports.tensorboard import Board  # not before something is recorded

        if stage not in self._boards:
            self._boards[stage] = Board(self.folder / "tensorboard" / stage, first_step)
        return self._boards[stage]
