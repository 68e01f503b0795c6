"""Rejection sampling: of a class's candidates, those stay that a judge most surely takes for it.

The judge comes from another package, var-train, which knows networks: a package names a function as
the entry point ``image_judge`` of the group ``var_transformer``, and this package imports none.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Protocol

import numpy as np
from var_tokenizer.common import InputError, open_regular, quoted, read_picture, replacing

from var_transformer.commands.options import DrawConfig

RECORD = "candidates.jsonl"
_AT_ONCE = 10  # images that a judge looks at


class ImageJudge(Protocol):
    """A classifier of a model's classes.

    identity: a digest of its weights.
    """

    identity: str

    def probabilities(self, images_byxc: np.ndarray) -> np.ndarray:
        """Of uint8 images (B, Y, X, 3), (B, num_classes): that of each class of the model."""


def load_judge(path: Path | None, num_classes: int, names: tuple[str, ...] | None) -> ImageJudge:
    """The judge in a file, or the default one, for a model of these classes.

    Raises InputError if no package brings judges, and for one that is unusable or knows other
    classes.
    """
    for point in entry_points(group="var_transformer", name="image_judge"):
        judge: ImageJudge = point.load()(path, num_classes, names)
        return judge
    raise InputError(
        "candidates are judged by networks of var-train, which is not installed: "
        "pip install 'var-train[judge]'"
    )


@dataclass(frozen=True)
class Candidate:
    """What may become the image file ``path``."""

    number: int
    label: int
    path: Path


class Selection:
    """The candidates of a run, ``group`` after another of one class each, and which of them stay.

    OUT/candidates.jsonl gets a line for each group when all of its images are written, and before
    those that do not stay are removed: ``class``, ``numbers``, ``probabilities`` of the class, and
    the numbers that are ``kept``.
    """

    def __init__(
        self,
        config: DrawConfig,
        judge: ImageJudge,
        candidates: Sequence[Candidate],
        group: int,
        keep: int,
    ) -> None:
        self._config, self._judge, self._candidates = config, judge, candidates
        self._group, self._keep = group, keep
        self._record = config.out / RECORD
        self._kept: list[set[int]] = []  # of each group that is settled, the numbers that stay

    def resume(self) -> None:
        """Reads the record of an earlier command; raises InputError for one of another run."""
        if not self._record.exists():
            return
        with open_regular(self._record) as file:
            *lines, rest = file.read().split(b"\n")
        if len(lines) > len(self._candidates) // self._group:
            raise self._error(f"has {len(lines)} lines")
        self._kept = [self._parsed(line, n) for n, line in enumerate(lines)]
        if rest:  # a command was killed as it wrote
            with replacing(self._record) as temporary:
                temporary.write_bytes(b"".join(line + b"\n" for line in lines))
        for n in range(len(self._kept) * self._group):
            self._remove_rejected(n)

    def is_rejected(self, n: int) -> bool:
        """Whether the candidate at place ``n`` is known not to stay."""
        group = n // self._group
        return group < len(self._kept) and self._candidates[n].number not in self._kept[group]

    def settle(self, end: int) -> None:
        """Decides on all groups whose images are before place ``end``, where all are written."""
        while (len(self._kept) + 1) * self._group <= end:
            begin = len(self._kept) * self._group
            group = self._candidates[begin : begin + self._group]
            probability_n = self._probabilities(group)
            first = np.argsort(-probability_n, kind="stable")[: self._keep]
            kept = {group[n].number for n in first.tolist()}
            line = {
                "class": group[0].label,
                "numbers": [candidate.number for candidate in group],
                "probabilities": probability_n.round(6).tolist(),
                "kept": sorted(kept),
            }
            with self._record.open("ab") as file:
                file.write(json.dumps(line).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            self._kept.append(kept)
            for n in range(begin, begin + self._group):
                self._remove_rejected(n)

    def kept(self) -> list[int]:
        """The places of the candidates that stay."""
        return [n for n in range(len(self._candidates)) if not self.is_rejected(n)]

    def _probabilities(self, group: Sequence[Candidate]) -> np.ndarray:
        found = []
        for begin in range(0, len(group), _AT_ONCE):
            part = group[begin : begin + _AT_ONCE]
            images = [np.asarray(read_picture(candidate.path)) for candidate in part]
            # networks compile once for batches of one size: repeats fill up the last
            padded = np.stack([images[n % len(images)] for n in range(_AT_ONCE)])
            found.append(self._judge.probabilities(padded)[: len(part), part[0].label])
        return np.concatenate(found)

    def _remove_rejected(self, n: int) -> None:
        if self.is_rejected(n):
            for path in self._config.files_of(self._candidates[n].path):
                path.unlink(missing_ok=True)

    def _parsed(self, line: bytes, group: int) -> set[int]:
        begin = group * self._group
        candidates = self._candidates[begin : begin + self._group]
        try:
            found = json.loads(line)
            label, numbers, kept = found["class"], found["numbers"], found["kept"]
            is_ours = label == candidates[0].label and numbers == [c.number for c in candidates]
            if is_ours and len(set(kept)) == self._keep and set(kept) <= set(numbers):
                return set(kept)
        except (ValueError, TypeError, KeyError, RecursionError):
            pass
        raise self._error(f"line {group + 1} is damaged or of other images")

    def _error(self, what: str) -> InputError:
        return InputError(f"{quoted(self._record)}: {what}; expected the record of this run")
