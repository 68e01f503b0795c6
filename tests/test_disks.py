"""Full disks, read-only ones, and two commands in one folder: one line says what is wrong.

What was done before is kept: once there is room, the same command ends as it would have.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from torture.works import OUT, QUIET, WORKS, Work, contents, make_inputs

pytestmark = pytest.mark.slow

NAMES = ("train-tokenizer", "train-transformer", "tokenize", "sample", "convert-to-pth")
ALONE = {work.name: work for work in WORKS if work.name in NAMES}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    make_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def end_of(inputs, tmp_path_factory) -> Callable[[Work], tuple[int, dict[str, str]]]:
    """What a work comes to where nothing is in its way: bytes, and the contents of its files."""
    ends: dict[str, tuple[int, dict[str, str]]] = {}

    def end(work: Work) -> tuple[int, dict[str, str]]:
        if work.name not in ends:
            place = tmp_path_factory.mktemp(work.name)
            assert run(work, inputs, place).returncode == 0
            size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
            ends[work.name] = size, contents(place)
        return ends[work.name]

    return end


def run(work: Work, inputs: Path, place: Path, mount: str | None = None, **more: str):
    """Runs a command in ``place``; mount: a shell command that only this run sees the effect of.

    The files that such a run wrote are in ``place``/kept.
    """
    words = [sys.executable, *work.words(inputs).split()]
    if mount is not None:
        script = f'{mount}; "$@"; code=$?; cp -r {OUT} kept; exit $code'
        words = ["unshare", "--mount", "bash", "-c", script, "bash", *words]
    environment = os.environ | QUIET | {"XDG_CACHE_HOME": str(inputs / "cache")} | more
    return subprocess.run(
        words, cwd=place, env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.fixture
def mounts() -> None:
    """Skips where this process may not mount anything."""
    tried = subprocess.run(["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"])
    if tried.returncode:
        pytest.skip("may not mount file systems here; needs root")


def refused(result: subprocess.CompletedProcess[str], reason: str) -> None:
    """One line tells the reason, and names a file or folder below OUT."""
    errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
    assert result.returncode == 2 and len(errors) == 1, result.stderr
    assert reason in errors[0] and OUT in errors[0], errors[0]
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name", ALONE)
def test_a_full_disk_ends_a_command_which_goes_on_later(name, mounts, inputs, end_of, tmp_path):
    size, end = end_of(ALONE[name])
    (tmp_path / OUT).mkdir()
    mount = f"mount -t tmpfs -o size={size // 2} none {OUT}"
    result = run(ALONE[name], inputs, tmp_path, mount)
    ahead = "convert" in name or "train" in name  # they know what they will write
    refused(result, "free in" if ahead else "No space left on device")
    (tmp_path / OUT).rmdir()
    (tmp_path / "kept").rename(tmp_path / OUT)
    assert run(ALONE[name], inputs, tmp_path).returncode == 0
    assert contents(tmp_path) == end


@pytest.mark.parametrize("name", ALONE)
def test_a_read_only_folder_is_named_and_stays_as_it_is(name, mounts, inputs, end_of, tmp_path):
    (tmp_path / OUT).mkdir()
    (tmp_path / OUT / "users").touch()
    mount = f"mount --bind {OUT} {OUT}; mount -o remount,ro,bind {OUT}"
    refused(run(ALONE[name], inputs, tmp_path, mount), "Read-only file system")
    assert [path.name for path in (tmp_path / OUT).iterdir()] == ["users"]


@pytest.mark.parametrize("options", ["size=100k", "ro"])
def test_where_graphs_cannot_be_cached_images_are_the_same(
    options, mounts, inputs, end_of, tmp_path
):
    cache = tmp_path.with_name(f"{tmp_path.name}-cache")
    cache.mkdir()
    mount = f"mount -t tmpfs -o {options} none {cache}"
    result = run(ALONE["sample"], inputs, tmp_path, mount, XDG_CACHE_HOME=str(cache))
    assert result.returncode == 0 and "Traceback" not in result.stderr, result.stderr
    shutil.rmtree(tmp_path / "kept")
    assert contents(tmp_path) == end_of(ALONE["sample"])[1]


@pytest.mark.parametrize("name", ["train-transformer", "sample"])
def test_of_two_commands_in_one_folder_the_second_is_refused(name, inputs, end_of, tmp_path):
    work = ALONE[name]
    _, end = end_of(work)
    words = [sys.executable, *work.words(inputs).split()]
    environment = os.environ | QUIET | {"XDG_CACHE_HOME": str(inputs / "cache")}
    first = subprocess.Popen(words, cwd=tmp_path, env=environment)
    try:
        while not (tmp_path / OUT / ".lock").exists():
            assert first.poll() is None
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)  # it cannot end before the second one looks
        refused(run(work, inputs, tmp_path), f"process {first.pid} on ")
    finally:
        first.send_signal(signal.SIGCONT)
    assert first.wait(600) == 0
    assert contents(tmp_path) == end
