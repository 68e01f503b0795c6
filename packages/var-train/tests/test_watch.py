"""Workers of several hosts watch one another, whatever their clocks say."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from var_train.parallel import watch


class Rounds:
    """In place of the event that ends the watch: acts before each look; ends after ``count``."""

    def __init__(self, count: int, act: Callable[[int], None]) -> None:
        self.count, self.act, self.done = count, act, 0

    def wait(self, _seconds: float) -> bool:
        self.act(self.done)
        self.done += 1
        return self.done > self.count


class Ended(BaseException):
    """Raised in place of the end of the process."""


@pytest.fixture
def beats(tmp_path, monkeypatch) -> list[Path]:
    """The heartbeats of this worker and of one on another host; every look is a beat of ours."""

    def end(_code: int) -> None:
        raise Ended

    monkeypatch.setattr(watch, "_TOUCH", -1.0)
    monkeypatch.setattr(watch.os, "_exit", end)
    paths = [tmp_path / f"{rank}.json" for rank in (0, 1)]
    for path in paths:
        path.write_text(json.dumps({"host": "elsewhere", "process": 1, "line": "a step"}))
    return paths


def test_a_worker_whose_hosts_clock_jumps_is_not_taken_for_dead(beats):
    own, other = beats

    def jump(n: int) -> None:
        os.utime(other, (1e9 + (-1) ** n * 1e6 - n,) * 2)  # never twice the same

    watch.look(own, [other], Rounds(200, jump))


def test_a_worker_that_is_silent_for_15_seconds_is_dead_whatever_the_time(beats, caplog):
    own, other = beats
    beat = 2.0 + watch._POLL  # seconds
    os.utime(other, (4e9, 4e9))  # its clock is decades ahead of ours
    rounds = Rounds(200, lambda n: None)
    with pytest.raises(Ended):
        watch.look(own, [other], rounds)
    assert 10 < (rounds.done - 1) * beat < 15  # since the first look
    assert "worker 1 (process 1 on elsewhere) died; its last log line: a step" in caplog.text
