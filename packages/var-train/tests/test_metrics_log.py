"""The log of a run where its disk is full, and what TensorBoard finds."""

import json
import resource
import subprocess
import sys

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from var_tokenizer.common import InputError
from var_train.reports.metrics_log import MetricsLog


def test_a_full_disk_ends_a_run_with_an_error_and_its_metrics_stay_readable(tmp_path):
    metrics = MetricsLog(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # files cannot grow beyond
    try:
        with pytest.raises(InputError, match="cannot write: File too large"):
            for step in range(10_000):
                metrics.write("tokenizer", step, loss=1.0)
        metrics.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    again = MetricsLog(tmp_path, resume=True)
    again.rewind("tokenizer", 5)
    again.write("tokenizer", 5, loss=2.0)
    again.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == [1.0] * 5 + [2.0]


def test_tensorboard_finds_scalars_lists_and_pictures_and_forgets_what_is_repeated(tmp_path):
    metrics = MetricsLog(tmp_path)
    metrics.rewind("tokenizer", 3)
    metrics.write("tokenizer", 3, loss=0.5, usage=[0.25, 0.75])
    picture = np.full((4, 6, 3), 200, np.uint8)
    metrics.write_validation("tokenizer", 3, loss=1.5, reconstructions=picture)
    metrics.close()
    [path] = (tmp_path / "tensorboard" / "tokenizer").iterdir()
    version, start, *events = records(path.read_bytes())
    assert version.file_version == "brain.Event:2"
    assert start.session_log.status == start.session_log.START and start.step == 3
    found = {value.tag: value for event in events for value in event.summary.value}
    assert {event.step for event in events} == {3}
    scalars = {"loss": 0.5, "usage/0": 0.25, "usage/1": 0.75, "validation/loss": 1.5}
    assert {tag: found[tag].simple_value for tag in scalars} == scalars
    image = found["validation/reconstructions"].image
    assert (image.height, image.width) == (4, 6)


def test_tensorboard_reads_processes_in_their_order_whatever_the_clock_said(tmp_path, monkeypatch):
    for clock in (2e9, 1e9):  # it was set back
        monkeypatch.setattr("time.time", lambda clock=clock: clock)
        metrics = MetricsLog(tmp_path, resume=True)
        metrics.write("tokenizer", 0, loss=clock)
        metrics.close()
    paths = sorted((tmp_path / "tensorboard" / "tokenizer").iterdir())
    losses = [records(p.read_bytes())[-1].summary.value[0].simple_value for p in paths]
    assert losses == [2e9, 1e9] and all("tfevents" in path.name for path in paths)


def test_a_process_that_leaves_without_pythons_exit_leaves_no_event_behind(tmp_path):
    lines = [
        "import os, sys, var_train",
        "metrics = var_train.MetricsLog(sys.argv[1])",
        "try:",
        "    with metrics.complete():",
        "        for step in range(5):",
        "            metrics.write('tokenizer', step, loss=1.0)",
        "        raise KeyboardInterrupt",
        "finally:",
        "    os._exit(130)",
    ]
    assert subprocess.run([sys.executable, "-c", "\n".join(lines), str(tmp_path)]).returncode == 130
    (path,) = (tmp_path / "tensorboard" / "tokenizer").iterdir()
    steps = [event.step for event in records(path.read_bytes()) if event.summary.value]
    assert steps == [0, 1, 2, 3, 4]


def records(data: bytes) -> list[Event]:
    """The events of a file: each after its length and a checksum, before another checksum."""
    found = []
    while data:
        length = int.from_bytes(data[:8], "little")
        found.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return found


RUN = """
import sys, var_train
before = {"tensorboardX", "torch", "sklearn"} & {*sys.modules}
metrics = var_train.MetricsLog(sys.argv[1])
metrics.write("tokenizer", 0, loss=1.0)
print(*sorted(before), "then", *sorted({"tensorboardX", "torch", "sklearn"} & {*sys.modules}))
"""


def test_training_loads_tensorboard_once_it_records_and_neither_pytorch_nor_scikit_learn(tmp_path):
    words = [sys.executable, "-c", RUN, str(tmp_path)]
    shown = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["then", "tensorboardX"]
