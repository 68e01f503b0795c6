"""Checkpoints of a run in progress."""

import logging
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from var_tokenizer.common import InputError, Snapshot
from var_train.training.checkpoints import CheckpointFolder


def snapshot(step, size=100):
    rng = np.random.default_rng(step)
    arrays = {
        "model/weight": rng.standard_normal((size, 3)).astype(np.float32),
        "adamw/moment": rng.standard_normal(size),
        "count": np.array(step),
    }
    return Snapshot(step, arrays, {"loss_scale": 2.0**step, "nested": {"ids": [1, 2]}})


def assert_same(found, wanted):
    assert (found.step, found.state) == (wanted.step, wanted.state)
    assert found.arrays.keys() == wanted.arrays.keys()
    for name, array in wanted.arrays.items():
        assert found.arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(found.arrays[name], array)


def test_the_newest_comes_back_as_it_was_saved(tmp_path):
    folder = CheckpointFolder(tmp_path)
    assert folder.newest() is None
    for step in (8, 10, 9):
        folder.save(snapshot(step))
    assert_same(folder.newest(), snapshot(10))


def test_the_last_k_and_the_best_are_kept(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=2)
    for step in range(1, 8):
        folder.save(snapshot(step), best=step in (1, 3))
    steps = sorted(int(path.stem.removeprefix("step-")) for path in tmp_path.iterdir())
    assert steps == [3, 6, 7]
    assert folder.best().stem.endswith("3")


@settings(deadline=None)  # a disk under load is slow, which is no fault
@given(st.data())
def test_a_damaged_newest_falls_back_to_the_one_before_with_a_warning(tmp_path_factory, data):
    folder = CheckpointFolder(tmp_path_factory.mktemp("checkpoints"))
    folder.save(snapshot(1, size=5))
    path = folder.save(snapshot(2, size=5))
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans(), label="cut"):
        content = content[: data.draw(st.integers(0, len(content) - 1), label="length")]
    else:
        content[data.draw(st.integers(0, len(content) - 1), label="at")] ^= data.draw(
            st.integers(1, 255), label="bits"
        )
    path.write_bytes(content)
    warnings = []
    handler = logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())
    logging.getLogger("var_train.training.checkpoints").addHandler(handler)
    try:
        found = folder.newest()
    finally:
        logging.getLogger("var_train.training.checkpoints").removeHandler(handler)
    if found.step == 2:  # what changed was the mark of the best, which nothing depends on
        assert_same(found, snapshot(2, size=5))
    else:
        assert_same(found, snapshot(1, size=5))
        assert "falling back to the one before" in warnings[0] and path.name in warnings[0]


def test_a_folder_of_damaged_checkpoints_is_an_error(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.save(snapshot(1)).write_bytes(b"")
    with pytest.raises(InputError, match="no checkpoint is whole"):
        folder.newest()


def test_a_full_disk_is_an_error_and_leaves_the_last_checkpoint(tmp_path):
    folder = CheckpointFolder(tmp_path)
    folder.save(snapshot(1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # files cannot grow beyond
    try:
        with pytest.raises(
            InputError, match=r"step-000000002\.safetensors: cannot write: File too large"
        ):
            folder.save(snapshot(2, size=10_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001.safetensors"]
    assert_same(folder.newest(), snapshot(1))


SAVER = """
import sys
import numpy as np
from var_train.training.checkpoints import CheckpointFolder, Snapshot
folder, weights = CheckpointFolder(sys.argv[1], keep=2), np.zeros(2_000_000, np.float32)
for step in range(1, 10_000):
    folder.save(Snapshot(step, {"weights": weights + step}, {}))
"""


def test_a_process_killed_during_a_save_leaves_whole_checkpoints(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", SAVER, str(tmp_path)], env=os.environ | {"GLOG_v": "3"}
    )
    # the first save is over, and the temporary file of another one is there
    while not (any(tmp_path.glob("step-*")) and any(tmp_path.glob(".step-*"))):
        assert process.poll() is None
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    folder = CheckpointFolder(tmp_path, keep=2)
    found = folder.newest()
    assert (found.arrays["weights"] == found.step).all()
    folder.save(Snapshot(found.step + 1, found.arrays, {}))
    assert not list(tmp_path.glob(".step-*"))
