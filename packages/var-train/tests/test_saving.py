"""Checkpoints that are written beside the training."""

import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from functools import partial

import numpy as np
import pytest
from var_tokenizer.common import InputError, Snapshot
from var_train.run import main as run_command
from var_train.training.checkpoints import ArraysOnDemand, CheckpointFolder, check_disk
from var_train.training.loop import LoopConfig
from var_train.training.saving import BackgroundSaver

MODULE = "var_train.training.saving"


class Training:
    """Arrays of one value, the number of a step, which they change to in place."""

    def __init__(self, size: int = 100) -> None:
        self.weights, self.count = np.zeros(size, np.float32), np.array(0)

    def at(self, step: int) -> Snapshot:
        self.weights[:], self.count[()] = step, step
        return Snapshot(step, {"weights": self.weights, "count": self.count}, {"step": step})


def whole(folder: CheckpointFolder) -> int:
    """The step of the newest checkpoint, all of which is of that step."""
    found = folder.newest()
    assert (found.arrays["weights"] == found.step).all() and found.arrays["count"] == found.step
    assert found.state == {"step": found.step}
    return found.step


@pytest.mark.parametrize("nbytes", [0, 400, 10_000])  # less room than needed, and more
def test_steps_go_on_while_what_they_left_is_written(tmp_path, monkeypatch, nbytes):
    go_on, write = threading.Event(), CheckpointFolder.save
    monkeypatch.setattr(CheckpointFolder, "save", lambda *args: go_on.wait() and write(*args))
    folder, training = CheckpointFolder(tmp_path), Training()
    with BackgroundSaver(folder, nbytes) as saver:
        saver.reserve("tokenizer")
        saver.save(training.at(1))
        training.at(2)  # the next step
        saver.check()
        assert not list(tmp_path.iterdir())
        go_on.set()
        saver.wait()
        assert whole(folder) == 1
        saver.save(training.at(3))
        saver.save(training.at(4))  # waits for the one before, whose copy it replaces
        training.at(5)
    assert whole(folder) == 4
    (tmp_path / "step-000000004.safetensors").unlink()
    assert whole(folder) == 3


def test_of_arrays_that_are_made_on_demand_a_copy_needs_one_at_a_time(tmp_path):
    made: list[weakref.ref] = []
    alive: list[int] = []

    def array(n: int) -> np.ndarray:
        found = np.full(1000, n, np.float32)
        made.append(weakref.ref(found))
        alive.append(sum(one() is not None for one in made))
        return found

    folder = CheckpointFolder(tmp_path)
    arrays = ArraysOnDemand({str(n): partial(array, n) for n in range(9)})
    with BackgroundSaver(folder, 50_000) as saver:
        saver.reserve("tokenizer")
        saver.save(Snapshot(1, arrays, {}))
    assert alive == [1] * 9
    found = folder.newest().arrays
    assert all((found[str(n)] == n).all() for n in range(9))


def test_without_memory_for_a_copy_a_save_waits_and_says_so_once(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(f"{MODULE}.host_memory", lambda: 7_000_000_000)
    folder, training = CheckpointFolder(tmp_path), Training()
    with BackgroundSaver(folder, 4_000_000_000) as saver:
        saver.reserve("transformer")
        for step in (1, 2):
            saver.save(training.at(step))
            assert whole(folder) == step
    assert caplog.messages == [
        "transformer: checkpoints need 4.0 GB of memory beside the training, which leaves "
        "7.0 GB: steps wait for them to be written"
    ]


@pytest.mark.parametrize("when", ["check", "wait", "save", "end"])
def test_a_full_disk_is_an_error_at_the_next_occasion(tmp_path, when):
    folder, training = CheckpointFolder(tmp_path), Training(10_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    message = r"step-000000002\.safetensors: cannot write: File too large"
    with (
        pytest.raises(InputError, match=message),
        BackgroundSaver(folder, 50_000) as saver,
    ):
        saver.reserve("tokenizer")
        saver.save(training.at(1))
        saver.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # files cannot grow beyond
        try:
            saver.save(training.at(2))
            deadline = time.monotonic() + 60
            while when == "check" and time.monotonic() < deadline:
                saver.check()
            if when == "wait":
                saver.wait()
            if when == "save":
                saver.save(training.at(3))
        finally:
            if when != "end":
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001.safetensors"]
    assert whole(folder) == 1


def test_an_error_of_the_training_waits_for_the_write_and_keeps_what_that_says(
    tmp_path, monkeypatch, caplog
):
    folder, training = CheckpointFolder(tmp_path), Training()
    with pytest.raises(ZeroDivisionError), BackgroundSaver(folder, 1000) as saver:
        saver.reserve("tokenizer")
        saver.save(training.at(1))
        raise ZeroDivisionError
    assert whole(folder) == 1

    def full(*_: object) -> None:
        raise InputError("step-2: cannot write")

    monkeypatch.setattr(CheckpointFolder, "save", full)
    with pytest.raises(ZeroDivisionError), BackgroundSaver(folder, 1000) as saver:
        saver.reserve("tokenizer")
        saver.save(training.at(2))
        raise ZeroDivisionError
    assert caplog.messages == ["step-2: cannot write"]


ENDLESS = """
import sys
import numpy as np
from var_tokenizer.common import Snapshot
from var_train.training.checkpoints import CheckpointFolder
from var_train.training.saving import BackgroundSaver
weights, count = np.zeros(2_000_000, np.float32), np.array(0)
with BackgroundSaver(CheckpointFolder(sys.argv[1], keep=2), 9_000_000) as saver:
    saver.reserve("tokenizer")
    for step in range(1, 10_000):
        weights[:], count[()] = step, step
        saver.save(Snapshot(step, {"weights": weights, "count": count}, {"step": step}))
"""


def test_a_process_killed_beside_a_write_leaves_the_checkpoint_before(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", ENDLESS, str(tmp_path)], env=os.environ | {"GLOG_v": "3"}
    )
    while not (any(tmp_path.glob("step-*")) and any(tmp_path.glob(".step-*"))):
        assert process.poll() is None
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert whole(CheckpointFolder(tmp_path)) >= 1


def test_the_disk_must_hold_what_a_run_keeps_beside_what_is_there(tmp_path, monkeypatch):
    folder = CheckpointFolder(tmp_path / "checkpoints" / "tokenizer")
    there = folder.save(Training().at(1)).stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 9000))
    needed = {"tokenizer": (4, 1000), "transformer": (5, 1000)}
    check_disk(tmp_path, needed, 3)
    needed["transformer"] = (5, 1000 + there)
    with pytest.raises(InputError, match=r"^0\.000 GB are free in .*--loop\.keep takes a smaller"):
        check_disk(tmp_path, needed, 3)


def test_few_checkpoints_are_counted_where_a_run_is_short():
    loop = LoopConfig(checkpoint_every=100, keep=3, validations=1)
    # the newest three, the best, and one that is being written
    assert [loop.most_checkpoints(steps) for steps in (99, 100, 300, 10**6)] == [2, 3, 5, 5]


def test_a_disk_that_cannot_hold_the_checkpoints_is_refused_before_anything_is_written(
    tmp_path, monkeypatch, caplog
):
    out = tmp_path / "runs" / "out"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 2**20))
    monkeypatch.setattr(sys, "argv", ["run", "--stage", "tokenizer", "--out", str(out)])
    with pytest.raises(SystemExit) as end:
        run_command()
    assert end.value.code == 2 and not out.exists()
    assert f"0.001 GB are free in {out}; expected " in caplog.text
