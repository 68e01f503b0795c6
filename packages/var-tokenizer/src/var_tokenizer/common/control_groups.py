"""What the control groups of Linux, of versions 1 and 2, grant to this process.

Where their files are missing (other systems, some containers), unreadable or malformed, they limit
nothing.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

PROCESS = Path("/proc/self")


def processor_quota(process: Path = PROCESS) -> float | None:
    """How many processors' time the control groups of ``process`` grant it.

    The strictest of the group and its ancestors counts. None without a quota.
    """
    groups = _groups(process, "cpu")
    return min((n for group in groups if (n := _quota(group)) is not None), default=None)


def memory_left(process: Path = PROCESS) -> int | None:
    """How many bytes the control groups of ``process`` leave it; 0 if it is over a limit.

    The strictest of the group and its ancestors counts. Pages of files, which the system takes back
    when memory is short, count as free; swap does not count. None without a limit.
    """
    groups = _groups(process, "memory")
    return min((n for group in groups if (n := _memory_left(group)) is not None), default=None)


def memory_kills(process: Path = PROCESS) -> int:
    """How many processes the control groups of ``process`` have killed because memory was short."""
    counts = [0]
    for group in _groups(process, "memory"):
        for name in ("memory.events", "memory.oom_control"):
            events = dict(line.partition(" ")[::2] for line in _lines(group / name))
            counts.append(_number([events.get("oom_kill", "")]) or 0)
    return max(counts)


def _groups(process: Path, wanted: str) -> Iterator[Path]:
    """The folders of the groups of the controller ``wanted``, each with its ancestors."""
    paths: dict[str, str] = {}  # by controller; "" is version 2
    for line in _lines(process / "cgroup"):
        if line.count(":") > 1:
            _, controllers, path = line.split(":", 2)
            paths |= {controller: path for controller in controllers.split(",")}
    for line in _lines(process / "mountinfo"):
        mount, _, source = line.partition(" - ")
        fields, options = mount.split(), source.rpartition(" ")[2].split(",")
        controller = {"cgroup2": "", "cgroup": wanted}.get(source.partition(" ")[0])
        if controller is None or controller not in paths or len(fields) < 5:
            continue
        if controller and controller not in options:
            continue
        root, top = (re.sub(r"\\([0-7]{3})", _character, field) for field in fields[3:5])
        # seen from a container, the path may lie outside of what is mounted: then its top counts
        inside = os.path.relpath(paths[controller], root)
        folder = Path(top) if inside.startswith("..") else Path(top, inside)
        yield folder
        yield from (parent for parent in folder.parents if parent.is_relative_to(top))


def _character(escape: re.Match[str]) -> str:
    return chr(int(escape[1], 8))


def _quota(group: Path) -> float | None:
    """The processors that one group grants; None if it does not limit them."""
    fields = " ".join(_lines(group / "cpu.max")).split()
    if not fields:
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        fields = [" ".join(_lines(group / name)).strip() for name in names]
    try:
        quota, period = map(int, fields)
    except ValueError:  # "max", or malformed
        return None
    return quota / period if quota > 0 and period > 0 else None


def _memory_left(group: Path) -> int | None:
    """The bytes that one group leaves; None if it does not limit them."""
    # above memory.high, version 2 slows a process down until it hardly runs
    names = ("memory.max", "memory.high", "memory.limit_in_bytes")
    limits = [n for name in names if (n := _number(_lines(group / name))) is not None]
    if not limits:
        return None
    uses = ("memory.current", "memory.usage_in_bytes")
    used = max(_number(_lines(group / name)) or 0 for name in uses)
    counts = dict(line.partition(" ")[::2] for line in _lines(group / "memory.stat"))
    files = 0
    for name in ("inactive_file", "active_file"):  # in version 1, those of subgroups are in total_
        files += _number([counts.get(f"total_{name}", counts.get(name, ""))]) or 0
    return max(min(limits) - max(used - files, 0), 0)


def _number(lines: list[str]) -> int | None:
    """The number that a file holds; None for "max" and anything else."""
    text = "".join(lines).strip()
    return int(text) if re.fullmatch("[0-9]{1,20}", text) else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return []
