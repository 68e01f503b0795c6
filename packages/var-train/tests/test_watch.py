"""Workers of several hosts watch one another, whatever their clocks say."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from var_train.parallel import watch

# of a container that has this host's name and its numbers of processes
LIFE = {"host": socket.gethostname(), "machine": "other", "process": os.getpid(), "line": "a step"}


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
        path.write_text(json.dumps(LIFE))
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
    died = f"worker 1 (process {os.getpid()} on {socket.gethostname()}) died"
    assert f"{died}; its last log line: a step" in caplog.text


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"machine": []}', json.dumps(LIFE | {"process": "x"}), "[" * 99_999],
)
def test_a_heartbeat_that_is_none_does_not_end_the_watch(beats, content):
    own, other = beats
    other.write_text(content)
    rounds = Rounds(40, lambda n: n == 20 and other.write_text(json.dumps(LIFE)))
    with pytest.raises(Ended):
        watch.look(own, [other], rounds)
    assert rounds.done > 25


def test_a_last_line_is_harmless_on_a_terminal(beats, caplog):
    own, other = beats
    other.write_text(json.dumps(LIFE | {"line": "\x1b[2J", "host": "\x1b[2J"}))
    with pytest.raises(Ended):
        watch.look(own, [other], Rounds(40, lambda n: None))
    assert "\x1b" not in caplog.text and r"\x1b[2J" in caplog.text
