"""Kills every kind of work at random moments, again and again; each must end as if nobody had.

A case is a piece of work on tiny data. SIGKILL or SIGTERM ends it up to eight times, in its first
second, at any moment of it, or at a change of one of its files; the same command goes on with it.
What is left must be the same, byte for byte, as without a kill, with no temporary file beside it,
and there may never be half of a file. The seeds of the cases follow from one that is printed.
"""

import argparse
import json
import logging
import os
import random
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "tests"), str(ROOT / "packages" / "var-transformer" / "tests" / "web")]
from torture.kills import LostError, Usual  # noqa: E402
from torture.page import PAGE  # noqa: E402
from torture.survival_page import HEADS, RECORD, rows  # noqa: E402
from torture.works import WORKS, Survived, Work, make_inputs  # noqa: E402

ALL = {work.name: work for work in (PAGE, *WORKS)}
log = logging.getLogger("torture")


class Night:
    """Cases, one after another, below a folder of their own."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.seed, self.cases = folder, seed, list[Survived]()
        self._began = time.monotonic()
        self._ends: dict[str, tuple[Usual, dict[str, str]]] = {}
        (folder / "inputs").mkdir()
        make_inputs(folder / "inputs")

    def add(self, work: Work, seed: int) -> None:
        """Runs a case. Its folder stays if it lost something."""
        inputs, place = self.folder / "inputs", self.folder / f"{work.name}-{seed}"
        place.mkdir()
        try:
            if work.name not in self._ends:
                alone = self.folder / work.name
                alone.mkdir()
                self._ends[work.name] = work.undisturbed(inputs, alone)
            case = work.survive(seed, inputs, place, *self._ends[work.name])
        except LostError as error:  # without being killed
            case = Survived(work.name, seed, failure=str(error))
        self.cases.append(case)
        if case.failure is None:
            shutil.rmtree(place)
        else:
            again = f"nox -s torture -- --case {work.name} --seed {seed}"
            log.error("%s: %s\n  again: %s", place, case.failure, again)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    @property
    def kills(self) -> int:
        return sum(case.kills.total() for case in self.cases)

    @property
    def failures(self) -> int:
        return sum(case.failure is not None for case in self.cases)

    def record(self) -> dict[str, Any]:
        """All cases, in JSON's types."""
        processors = f"{os.cpu_count()} processors, MindSpore {version('mindspore')}"
        about = {"seed": self.seed, "seconds": round(self.seconds), "machine": processors}
        return about | {"cases": [_entry(case) for case in self.cases]}


def _entry(case: Survived) -> dict[str, Any]:
    signals, moments = Counter[str](), Counter[str]()
    for (number, moment), count in case.kills.items():
        signals[number] += count
        moments[moment] += count
    named = {"case": case.case, "seed": case.seed, "failure": case.failure}
    return named | {"signals": dict(signals), "moments": dict(moments)}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser("nox -s torture --", description=__doc__)
    parser.add_argument("--kills", type=int, default=500, help="how many (500); recorded")
    parser.add_argument("--seconds", type=int, help="stop then, after one case of each; no record")
    parser.add_argument("--case", choices=ALL, help="this kind of work alone, once; no record")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    return parser.parse_args()


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what it started ends with it
    options = parse()
    night = Night(Path(tempfile.mkdtemp(prefix="torture-")), options.seed)
    log.info("seed %d, in %s", night.seed, night.folder)
    columns = TextColumn("{task.description:24}"), BarColumn(), MofNCompleteColumn()
    seeds = random.Random(night.seed)

    def goes_on() -> bool:
        if options.case:
            return not night.cases
        if options.seconds:
            return night.seconds < options.seconds or len(night.cases) < len(ALL)
        return night.kills < options.kills

    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None if options.case or options.seconds else options.kills)
        while goes_on():
            name = options.case or [*ALL][len(night.cases) % len(ALL)]
            bar.update(task, description=name)
            night.add(ALL[name], night.seed if options.case else seeds.randrange(10**6))
            bar.update(task, completed=night.kills)
            if not options.case and not options.seconds:
                RECORD.write_text(json.dumps(night.record(), indent=1) + "\n")
    table = Table(*HEADS)
    for row in rows(night.record()):
        table.add_row(*row)
    console = Console()
    (console if console.is_terminal else Console(width=140)).print(table)
    if night.failures:
        sys.exit(f"{night.failures} of {len(night.cases)} cases lost something: {night.folder}")
    shutil.rmtree(night.folder)


if __name__ == "__main__":
    main()
