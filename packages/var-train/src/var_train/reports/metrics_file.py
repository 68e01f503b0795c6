"""``metrics.jsonl``, read from its end: what days of training wrote is not parsed, nor held."""

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from var_tokenizer.common import replacing

_BLOCK = 2**20  # bytes that are read at once


class MetricsFile:
    """Lines of JSON objects with the "stage" and "step" that ``MetricsLog`` describes.

    It relies on their order: the steps of a stage ascend, and a validation follows its step. Raises
    OSError if the file cannot be read or written.
    """

    def __init__(self, path: Path, resume: bool) -> None:
        """resume: keep its lines, but for a last one that a killed process left unfinished."""
        self._path = path
        self._file: TextIO = path.open("a" if resume else "w", buffering=1)
        place, last = next(_from_end(path))
        if _parsed(last) is not None:
            self._file.write("\n")
        elif last:
            os.truncate(path, place)

    def append(self, line: Mapping[str, object]) -> None:
        self._file.write(json.dumps(line) + "\n")

    def seconds(self) -> float:
        """What the last line that has some says of the time of all processes; 0 without any."""
        for _, text in _from_end(self._path):
            line = _parsed(text)
            seconds = line.get("seconds") if isinstance(line, dict) else None
            if isinstance(seconds, int | float) and math.isfinite(seconds):
                return seconds
        return 0

    def rewind(self, stage: str, step: int, pending: bool = False) -> None:
        """Removes the lines of ``stage`` from ``step`` on, all at once or none.

        pending: and the validation after the step before.
        """
        cut, is_kept, keeps_more = None, False, False
        for place, text in _from_end(self._path):
            line = _of_stage(text, stage)
            if line is None:
                is_kept |= bool(text)
            elif _is_repeated(line, step, pending):
                cut, keeps_more = place, is_kept
            elif line.get("stage") == stage:
                break  # all before it are of earlier steps
            else:
                is_kept = True
        if cut is None:
            return
        if not keeps_more:
            os.truncate(self._path, cut)
            return
        self.close()
        with self._path.open("rb") as before, replacing(self._path) as temporary:
            shutil.copyfile(self._path, temporary)
            with temporary.open("r+b") as after:
                after.truncate(cut)
                after.seek(cut)
                before.seek(cut)
                for text in before:
                    line = _of_stage(text, stage)
                    if line is None or not _is_repeated(line, step, pending):
                        after.write(text)
        self._file = self._path.open("a", buffering=1)

    def close(self) -> None:
        self._file.close()


def _from_end(path: Path) -> Iterator[tuple[int, bytes]]:
    """Place and text of each line, the last one first: an empty one if all are finished."""
    with path.open("rb") as file:
        begin, rest = file.seek(0, os.SEEK_END), b""
        while begin:
            size = min(max(_BLOCK, len(rest)), begin)
            begin -= size
            file.seek(begin)
            block = file.read(size) + rest
            rest, *lines = block.split(b"\n")
            end = begin + len(block)
            for line in reversed(lines):
                yield end - len(line), line
                end -= len(line) + 1
        yield 0, rest


def _parsed(text: bytes) -> object:
    """The value of a line; None if it is damaged."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _of_stage(text: bytes, stage: str) -> dict[str, Any] | None:
    """A line, if it is of a step or of a validation of ``stage``."""
    if stage.encode() not in text:  # faster than to parse it
        return None
    line = _parsed(text)
    if not isinstance(line, dict) or not isinstance(line.get("step"), int):
        return None
    return line if line.get("of", line.get("stage")) == stage else None


def _is_repeated(line: Mapping[str, Any], step: int, pending: bool) -> bool:
    """Whether a line of a stage is of ``step`` or later, or of the pending validation before it."""
    return line["step"] >= step - (pending and line.get("stage") == "validation")
