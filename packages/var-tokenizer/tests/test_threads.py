"""How many threads work, and that none of them takes a processor only to wait."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from var_tokenizer.common import kernels_in_use
from var_tokenizer.common.threads import processor_quota, thread_count

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


@pytest.fixture
def process(tmp_path: Path):
    """Writes what /proc/self says of a process in the group ``path`` of what is mounted."""
    folder = tmp_path / "proc"
    folder.mkdir()

    def written(cgroup: str, mounts: list[tuple[str, str, str, str]]) -> Path:
        (folder / "cgroup").write_text(cgroup)
        lines = [
            f"3{i} 24 0:2{i} {root} {tmp_path / top} rw shared:9 - {kind} none {options}\n"
            for i, (root, top, kind, options) in enumerate(mounts)
        ]
        (folder / "mountinfo").write_text("22 1 8:1 / / rw - ext4 /dev/vda rw\n" + "".join(lines))
        return folder

    return written


def limit(group: Path, quota: str, period: str | None = None) -> None:
    """Version 2 has both numbers in one file."""
    group.mkdir(parents=True, exist_ok=True)
    (group / ("cpu.max" if period is None else "cpu.cfs_quota_us")).write_text(quota)
    if period is not None:
        (group / "cpu.cfs_period_us").write_text(period)


V2 = [("/", "unified", "cgroup2", "rw")]
V1 = [("/", "memory", "cgroup", "rw,memory"), ("/", "cpu", "cgroup", "rw,cpu,cpuacct")]
V1_GROUPS = "4:memory:/other\n1:cpu,cpuacct:/job\n0::/\n"


def test_a_quota_of_version_2_counts(tmp_path, process):
    limit(tmp_path / "unified" / "job", "150000 100000\n")
    assert processor_quota(process("0::/job\n", V2)) == 1.5


def test_a_quota_of_version_1_counts(tmp_path, process):
    limit(tmp_path / "cpu" / "job", "50000\n", "100000\n")
    assert processor_quota(process(V1_GROUPS, V1 + V2)) == 0.5


@pytest.mark.parametrize("strict", ["a", "a/b", "a/b/c"])
def test_the_strictest_of_nested_groups_counts(tmp_path, process, strict):
    top = tmp_path / "unified"
    for name in ("a", "a/b", "a/b/c"):
        limit(top / name, "100000 100000" if name == strict else "400000 100000")
    limit(top / "a/sibling", "1000 100000")
    assert processor_quota(process("0::/a/b/c\n", V2)) == 1


def test_a_group_of_a_container_is_found_where_it_is_mounted(tmp_path, process):
    limit(tmp_path / "cpu", "200000", "100000")
    mounts = [("/docker/1f", "cpu", "cgroup", "rw,cpu")]
    assert processor_quota(process("1:cpu:/docker/1f\n", mounts)) == 2
    assert processor_quota(process("1:cpu:/docker/other\n", mounts)) == 2


def test_a_mount_point_may_hold_spaces(tmp_path, process):
    limit(tmp_path / "a group" / "job", "100000 100000")
    assert processor_quota(process("0::/job\n", [("/", r"a\040group", "cgroup2", "rw")])) == 1


@pytest.mark.parametrize(
    "content",
    ["max 100000", "", "100000", "1e5 100000", "-1 100000", "100000 0", "1 2 3", "quota", "\x00"],
)
def test_a_group_that_sets_no_quota_limits_nothing(tmp_path, process, content):
    limit(tmp_path / "unified" / "job", content)
    limit(tmp_path / "cpu" / "job", content.split(" ")[0], "")
    assert processor_quota(process(V1_GROUPS.replace("0::/", "0::/job"), V1 + V2)) is None


def test_missing_and_malformed_files_limit_nothing(tmp_path, process):
    assert processor_quota(tmp_path / "absent") is None
    assert processor_quota(process("", V2)) is None
    assert processor_quota(process("no group\n::\n0::/job\n", V2)) is None
    folder = process("0::/job\n", [("/", "", "", "")])
    assert processor_quota(folder) is None
    (folder / "mountinfo").write_bytes(b"\xff\n - cgroup2\n1 2 3 - cgroup2 none rw\n")
    assert processor_quota(folder) is None


def test_an_unreadable_quota_limits_nothing(tmp_path, process):
    # a folder, because root may read any file
    (tmp_path / "unified" / "job" / "cpu.max").mkdir(parents=True)
    assert processor_quota(process("0::/job\n", V2)) is None


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


@pytest.fixture
def group_of_one_processor() -> Iterator[Path]:
    """A real control group with a quota of one processor; skips where none can be made."""
    name = f"var-test-{os.getpid()}"
    for top, files in (
        ("cpu", {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "100000"}),
        ("cpu,cpuacct", {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "100000"}),
        ("", {"cpu.max": "100000 100000"}),
    ):
        group = Path("/sys/fs/cgroup", top, name)
        try:
            group.mkdir()
        except OSError as error:
            reason = f"no control group can be made: {error}"
            continue
        try:
            for file, content in files.items():
                (group / file).write_text(content)
            yield group
            return
        except OSError as error:
            reason = f"no quota can be set: {error}"
        finally:
            group.rmdir()
    pytest.skip(reason)


def test_the_quota_of_a_real_control_group_is_read(group_of_one_processor):
    code = f"""
import os
open({str(group_of_one_processor / "cgroup.procs")!r}, "w").write(str(os.getpid()))
from var_tokenizer.common.threads import processor_quota, thread_count
print(processor_quota(), thread_count())
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["1.0", "1"]


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
