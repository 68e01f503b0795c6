"""How many threads work, and that none of them takes a processor only to wait."""

import os
import subprocess
import sys

import pytest
from var_tokenizer.common import kernels_in_use
from var_tokenizer.common.threads import thread_count

# prints the names of its threads, and the processor seconds of one pass beside each number of
# neighbours, each of which takes as much of a processor as it gets
WORK = """
import os, subprocess, sys, time
import numpy as np
from var_tokenizer import Tokenizer, TokenizerConfig
from var_tokenizer.common.threads import thread_count

tokenizer = Tokenizer(
    TokenizerConfig(vocab_size=64, latent_channels=8, channels=32, channel_multipliers=(1, 2),
                    res_blocks=1, scales=(1, 2, 4, 8))
)
images = np.zeros((8, 3, 16, 16), np.float32)
names = set()
print(thread_count())
for neighbours in map(int, sys.argv[1:]):
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"])
              for _ in range(neighbours)]
    seconds = []
    for _ in range(12):
        begin = time.process_time()
        for _ in range(5):
            tokenizer.decode(tokenizer.encode(images))
        seconds.append(time.process_time() - begin)
    print(min(seconds[2:]))
    for other in others:
        other.kill()
for task in os.listdir("/proc/self/task"):
    names.add(open(f"/proc/self/task/{task}/comm").read().strip())
print(*sorted(names))
"""


def work(*neighbours: int, **environment: str) -> tuple[int, list[float], set[str]]:
    """The number of threads, the seconds beside each number of neighbours, and threads' names."""
    run = subprocess.run(
        [sys.executable, "-c", WORK, *map(str, neighbours)],
        env=os.environ | {"GLOG_v": "3"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    count, *seconds, names = run.stdout.splitlines()
    return int(count), [float(value) for value in seconds], set(names.split())


def test_the_least_of_processors_quota_and_omp_num_threads_counts(monkeypatch):
    def count(processors: int, quota: float | None, wanted: str) -> int:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(processors)))
        monkeypatch.setattr("var_tokenizer.common.threads.processor_quota", lambda: quota)
        monkeypatch.setenv("OMP_NUM_THREADS", wanted)
        return thread_count()

    assert count(8, None, "") == 8
    assert count(8, 2.5, "") == 3
    assert count(8, 0.2, "") == 1
    assert count(2, 4, "") == 2
    assert count(8, 6, "4") == 4
    assert count(2, None, "4") == 2
    assert count(8, None, " 4,2 ") == 4
    for ignored in ("0", "-1", "many", ","):
        assert count(8, None, ignored) == 8


@pytest.mark.skipif(
    not kernels_in_use(["var_tokenizer"]), reason="the kernels were not built when installed"
)
def test_a_pass_costs_no_more_beside_neighbours_and_no_thread_of_mindspore_waits_for_another():
    count, (alone, beside), names = work(0, 2)
    assert count == thread_count()
    # KernelThread_0 takes a share of each of MindSpore's operators, frontend_queue runs graphs
    # while the caller spins
    assert not {name for name in names if name.startswith(("KernelThread", "frontend"))}
    assert beside < 1.5 * alone


def test_a_users_settings_of_mindspore_stay():
    code = """
import os, time, mindspore as ms
ms.device_context.cpu.op_tuning.threads_num(2)
from var_tokenizer.common.threads import settle_mindspore
settle_mindspore(1)
for _ in range(100):  # a thread gets its name a moment after its start
    (ms.Tensor([1.0]) + ms.Tensor([2.0])).asnumpy()
    tasks = os.listdir("/proc/self/task")
    names = {open(f"/proc/self/task/{task}/comm").read().strip() for task in tasks}
    if {"KernelThread_0", "frontend_queue"} <= names:
        break
    time.sleep(0.1)
print(*names)
"""
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"GLOG_v": "3", "MS_DEV_HOST_BLOCKING_RUN": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    names = run.stdout.split()
    assert "KernelThread_0" in names and "frontend_queue" in names


def test_a_number_of_threads_that_a_user_set_before_the_import_stays():
    code = """
import mindspore as ms
ms.set_context(runtime_num_threads=7)
from var_tokenizer.common.threads import settle_mindspore
settle_mindspore(1)
print(ms.get_context("runtime_num_threads"))
"""
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["7"]
