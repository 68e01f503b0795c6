"""What control groups grant a process: processors and memory, of versions 1 and 2."""

import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from var_tokenizer.common.control_groups import memory_kills, memory_left, processor_quota


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


def _real_group(kinds: Iterable[tuple[str, dict[str, str]]]) -> Iterator[Path]:
    """The first that can be made: a folder below /sys/fs/cgroup, and what its files are to say."""
    reason = ""
    for top, files in kinds:
        group = Path("/sys/fs/cgroup", top, f"var-test-{os.getpid()}")
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
            reason = f"no limit can be set: {error}"
        finally:
            group.rmdir()
    pytest.skip(reason)


@pytest.fixture
def group_of_one_processor() -> Iterator[Path]:
    """A real control group with a quota of one processor; skips where none can be made."""
    v1 = {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "100000"}
    v2 = {"cpu.max": "100000 100000"}
    yield from _real_group((("cpu", v1), ("cpu,cpuacct", v1), ("", v2)))


@pytest.fixture
def group_of_memory() -> Iterator[Path]:
    """A real control group of 1 GiB; skips where none can be made."""
    yield from _real_group(
        (("memory", {"memory.limit_in_bytes": str(2**30)}), ("", {"memory.max": str(2**30)}))
    )


def test_the_quota_of_a_real_control_group_is_read(group_of_one_processor):
    code = f"""
import os
open({str(group_of_one_processor / "cgroup.procs")!r}, "w").write(str(os.getpid()))
from var_tokenizer.common.control_groups import processor_quota
from var_tokenizer.common.threads import thread_count
print(processor_quota(), thread_count())
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["1.0", "1"]


# ---------------------------------------------------------------- memory
MEMORY_V1 = "memory.limit_in_bytes", "memory.usage_in_bytes"
MEMORY_V2 = "memory.max", "memory.current"
NO_LIMIT_V1 = "9223372036854771712\n"


def hold(group: Path, most: str, used: int, stat: str = "", names=MEMORY_V2) -> None:
    group.mkdir(parents=True, exist_ok=True)
    for name, content in zip((*names, "memory.stat"), (most, f"{used}\n", stat), strict=True):
        (group / name).write_text(content)


@pytest.mark.parametrize(("version", "names"), [(1, MEMORY_V1), (2, MEMORY_V2)])
def test_memory_left_is_the_limit_less_what_is_used(tmp_path, process, version, names):
    hold(tmp_path / ("memory" if version == 1 else "unified") / "job", "1000\n", 300, names=names)
    cgroup = "4:memory:/job\n0::/\n" if version == 1 else "0::/job\n"
    assert memory_left(process(cgroup, V1 + V2)) == 700


def test_pages_of_files_count_as_free_and_swap_does_not(tmp_path, process):
    stat = "anon 100\nfile 150\ninactive_file 120\nactive_file 30\n"
    hold(tmp_path / "unified" / "job", "1000", 300, stat)
    (tmp_path / "unified" / "job" / "memory.swap.max").write_text("5000")
    assert memory_left(process("0::/job\n", V2)) == 850


def test_version_1_counts_pages_of_files_in_subgroups_too(tmp_path, process):
    stat = "inactive_file 1\nactive_file 2\ntotal_inactive_file 40\ntotal_active_file 60\n"
    hold(tmp_path / "memory", "1000", 300, stat, MEMORY_V1)
    assert memory_left(process("4:memory:/\n", V1)) == 800


@pytest.mark.parametrize("strict", ["a", "a/b", "a/b/c"])
def test_the_nested_group_that_leaves_least_memory_counts(tmp_path, process, strict):
    for name in ("a", "a/b", "a/b/c"):
        hold(tmp_path / "unified" / name, "500" if name == strict else "max", 100)
    hold(tmp_path / "unified" / "a" / "sibling", "1", 1)
    assert memory_left(process("0::/a/b/c\n", V2)) == 400


def test_the_point_from_which_version_2_slows_down_counts_as_the_limit(tmp_path, process):
    hold(tmp_path / "unified" / "job", "max", 100)
    (tmp_path / "unified" / "job" / "memory.high").write_text("250\n")
    assert memory_left(process("0::/job\n", V2)) == 150


def test_a_group_over_its_limit_leaves_nothing(tmp_path, process):
    hold(tmp_path / "unified" / "job", "1000", 5000)
    assert memory_left(process("0::/job\n", V2)) == 0


def test_more_pages_of_files_than_memory_leave_the_limit(tmp_path, process):
    hold(tmp_path / "unified" / "job", "1000", 300, "inactive_file 99999\n")
    assert memory_left(process("0::/job\n", V2)) == 1000


@pytest.mark.parametrize("content", ["max\n", "", "-1", "1e9", "a lot", "9" * 5000, "\x00", "٣"])
def test_a_group_without_a_readable_limit_leaves_memory_unlimited(tmp_path, process, content):
    hold(tmp_path / "unified" / "job", content, 300)
    assert memory_left(process("0::/job\n", V2)) is None


def test_missing_and_malformed_files_limit_no_memory(tmp_path, process):
    assert memory_left(tmp_path / "absent") is None
    assert memory_left(process("", V2)) is None
    (tmp_path / "unified" / "job" / "memory.max").mkdir(parents=True)  # root may read any file
    assert memory_left(process("0::/job\n", V2)) is None


def test_a_limit_without_a_readable_use_leaves_all_of_it(tmp_path, process):
    hold(tmp_path / "unified" / "job", "1000", 300, "inactive_file\n\nactive_file x\n")
    assert memory_left(process("0::/job\n", V2)) == 700
    (tmp_path / "unified" / "job" / "memory.current").unlink()
    assert memory_left(process("0::/job\n", V2)) == 1000


def test_no_limit_of_version_1_is_a_large_one(tmp_path, process):
    hold(tmp_path / "memory" / "job", NO_LIMIT_V1, 300, names=MEMORY_V1)
    assert memory_left(process("4:memory:/job\n", V1)) > 2**62


def test_processes_killed_for_memory_are_counted_in_either_version(tmp_path, process):
    hold(tmp_path / "unified" / "job", "1000", 300)
    assert memory_kills(process("0::/job\n", V2)) == 0
    (tmp_path / "unified" / "job" / "memory.events").write_text("max 9\noom 4\noom_kill 3\n")
    assert memory_kills(process("0::/job\n", V2)) == 3
    hold(tmp_path / "memory" / "job", "1000", 300, names=MEMORY_V1)
    (tmp_path / "memory" / "job" / "memory.oom_control").write_text("under_oom 0\noom_kill 2\n")
    assert memory_kills(process("4:memory:/job\n", V1)) == 2


def test_the_memory_that_a_real_control_group_leaves_is_read(group_of_memory):
    code = f"""
import os
open({str(group_of_memory / "cgroup.procs")!r}, "w").write(str(os.getpid()))
from var_tokenizer.common.control_groups import memory_left
print(memory_left())
held = b"x" * (256 << 20)
print(memory_left())
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = map(int, run.stdout.split())
    assert 0 < before <= 2**30
    assert 200 << 20 < before - after < 300 << 20
