"""The log of a run's numbers and pictures: ``metrics.jsonl`` and TensorBoard."""

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TextIO

import numpy as np
from tensorboardX import SummaryWriter
from var_tokenizer.common import InputError, quoted, replacing, save_png

from var_train.parallel import workers

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
        self._path = self.folder / "metrics.jsonl"
        self._boards: dict[str, SummaryWriter] = {}
        self._file: TextIO | None = None  # of worker 0
        if workers.rank() > 0:
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

    def write_changes(
        self, changed: Mapping[str, tuple[object, object]], done: Mapping[str, int | None]
    ) -> None:
        """Records settings that changed, if any: old and new value by name.

        done: the finished steps of each stage that goes on; None if it begins.
        """
        if self._file is None or not changed:
            return
        line = {"stage": "settings", "seconds": self._seconds(), "done": done, "changed": changed}
        self._rewrite([*self._lines(), line])

    def rewind(self, stage: str, step: int) -> None:
        """Removes the lines of ``stage`` from ``step`` on: these steps will be repeated."""
        if self._file is None:
            return
        self._rewrite(
            line
            for line in self._lines()
            if line.get("of", line["stage"]) != stage or line["step"] < step
        )
        self._board(stage, step)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        for board in self._boards.values():
            board.close()

    def _record(self, kind: str, stage: str, step: int, values: dict[str, Value]) -> None:
        if self._file is None:
            return
        numbers = {k: v for k, v in values.items() if not isinstance(v, np.ndarray)}
        line = {"stage": kind, "step": step, "seconds": self._seconds(), **numbers}
        if kind != stage:
            line["of"] = stage
        board = self._board(stage)
        prefix = "" if kind == stage else f"{kind}/"
        try:
            self._file.write(json.dumps(line) + "\n")
            for name, value in values.items():
                if isinstance(value, np.ndarray):
                    path = self.folder / "pictures" / f"{stage}-{name}-{step + 1:08d}.png"
                    save_png(value, path)
                    board.add_image(prefix + name, value, step, dataformats="HWC")
                elif isinstance(value, list):
                    for k, item in enumerate(value):
                        board.add_scalar(f"{prefix}{name}/{k}", item, step)
                elif isinstance(value, str):
                    board.add_text(prefix + name, value, step)
                else:
                    board.add_scalar(prefix + name, value, step)
        except OSError as error:
            raise InputError(f"{quoted(self.folder)}: cannot write: {error.strerror}") from error

    def _rewrite(self, lines: Iterable[dict]) -> None:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        if self._file is not None:
            self._file.close()
        with replacing(self._path) as temporary:
            temporary.write_text(text)
        self._file = self._path.open("a", buffering=1)

    def _seconds(self) -> float:
        return round(time.monotonic() - self._started, 2)

    def _board(self, stage: str, purge_step: int | None = None) -> SummaryWriter:
        if stage not in self._boards:
            folder = str(self.folder / "tensorboard" / stage)
            self._boards[stage] = SummaryWriter(folder, purge_step=purge_step, flush_secs=10)
        return self._boards[stage]

    def _lines(self) -> list[dict]:
        """The lines of the file, without one that a killed process left unfinished."""
        lines = []
        for text in self._path.read_text().splitlines():
            try:
                lines.append(json.loads(text))
            except (ValueError, RecursionError):
                continue
        return lines
