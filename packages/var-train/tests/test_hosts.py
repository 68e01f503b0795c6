"""Workers on several hosts: network namespaces, each with an address and a name of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import tiny
from image_tree import write_image_tree
from var_tokenizer import Tokenizer

SETTINGS = """
    --transformer.depth 1 --transformer.width 32 --transformer.heads 2
    --train-transformer.batch 6 --train-transformer.epochs 20 --loop.checkpoint-every 20
    --sampling.per-class 1 --sampling.batch 2 --train-transformer.samples-per-class 0
"""
STEPS = 133  # 40 images, 20 epochs
ENVIRONMENT = os.environ | {"GLOG_v": "3", "OMP_NUM_THREADS": "1"}

pytestmark = pytest.mark.slow


class Hosts:
    """Hosts on one switch. Each sees its own processes alone, and all see the same disk."""

    def __init__(self, count: int) -> None:
        self._prefix = f"v{os.getpid()}"
        self._switch = f"{self._prefix}s"
        self._names = [f"{self._prefix}-{n}" for n in range(count)]
        self._ip("netns", "add", self._switch)
        self._ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
        self._ip("-n", self._switch, "link", "set", "bridge", "up")
        for n, name in enumerate(self._names):
            self._ip("netns", "add", name)
            cable = ("link", "add", f"cable{n}", "netns", self._switch, "type", "veth")
            self._ip(*cable, "peer", "name", "eth0", "netns", name)
            self._ip("-n", self._switch, "link", "set", f"cable{n}", "master", "bridge", "up")
            self._ip("-n", name, "addr", "add", f"10.77.0.{n + 1}/24", "dev", "eth0")
            self._ip("-n", name, "link", "set", "eth0", "up")
            self._ip("-n", name, "link", "set", "lo", "up")

    def _ip(self, *words: str) -> None:
        done = subprocess.run(["ip", *words], check=False, capture_output=True, text=True)
        if done.returncode:
            raise OSError(done.stderr.strip())

    def start(self, host: int, words: list[str], log: Path) -> subprocess.Popen:
        """A command on a host; its output goes to ``log``."""
        name = ["ip", "netns", "exec", self._names[host]]
        name += ["unshare", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        name += ["sh", "-c", f'hostname host{host}; exec "$@"', "sh"]
        with log.open("w") as file:
            return subprocess.Popen(
                [*name, *words], env=ENVIRONMENT, stdout=file, stderr=subprocess.STDOUT
            )

    def plug(self, host: int, is_in: bool) -> None:
        """Puts the cable of a host in or pulls it."""
        state = "up" if is_in else "down"
        self._ip("-n", self._switch, "link", "set", f"cable{host}", state)

    def close(self) -> None:
        for name in (*self._names, self._switch):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[Callable[[int], Hosts]]:
    """``hosts(count)``; the test is skipped where namespaces cannot be made."""
    made: list[Hosts] = []

    def make(count: int) -> Hosts:
        try:
            made.append(Hosts(count))
        except OSError as error:
            pytest.skip(f"no network namespaces here: {error}")
        return made[0]

    yield make
    for network in made:
        network.close()


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("work")
    write_image_tree(root / "images", (4, 4), train=20, val=4)
    Tokenizer(tiny.tokenizer(channel_multipliers=(1,), scales=(1, 2, 4)), 0).save(
        root / "tokenizer.safetensors"
    )
    return root


def command(work: Path, out: Path) -> list[str]:
    words = ["python", "-m", "var_train.run", "--stage", "transformer", *SETTINGS.split()]
    words += ["--data", str(work / "images"), "--out", str(out)]
    return [*words, "--tokenizer-file", str(work / "tokenizer.safetensors")]


@pytest.fixture(scope="module")
def losses(work) -> list[float]:
    """Those of one process."""
    words = [sys.executable, *command(work, work / "alone")[1:]]
    subprocess.run(words, check=True, env=ENVIRONMENT, capture_output=True, timeout=600)
    return losses_of(work / "alone")


def losses_of(out: Path) -> list[float]:
    """Of each step, the last one that was written."""
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return list({line["step"]: line["loss"] for line in lines if "loss" in line}.values())


class Run:
    """A run of a worker a host."""

    def __init__(self, hosts: Hosts, count: int, work: Path, out: Path, *more: str) -> None:
        self.out, self.logs = out, [out.with_suffix(f".{n}.txt") for n in range(count)]
        self.processes = []
        for n, log in enumerate(self.logs):
            words = [sys.executable, "-m", "var_train.launch", *more, f"--worker_num={count}"]
            words += ["--local_worker_num=1", "--master_addr=10.77.0.1", "--master_port=8118"]
            words += [f"--node_rank={n}", f"--log_dir={out}.logs.{n}", *command(work, out)]
            self.processes.append(hosts.start(n, words, log))

    def text(self, host: int = 0) -> str:
        return self.logs[host].read_text()

    def wait_for(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 300
        while not true():
            assert time.monotonic() < deadline and self.is_running(), self.text(0) + self.text(1)
            time.sleep(0.1)

    def worker(self, host: int) -> int:
        """The process of a host's worker."""
        wanted = [str(self.out).encode(), b"RANK_ID=%d" % host]
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                command, variables = (
                    (path / "cmdline").read_bytes(),
                    (path / "environ").read_bytes(),
                )
                is_worker = b"var_train.run" in command and b"var_train.launch" not in command
                if is_worker and wanted[0] in command and wanted[1] in variables.split(b"\0"):
                    return int(path.name)
        raise AssertionError(f"no worker {host}")

    def is_running(self) -> bool:
        return any(process.poll() is None for process in self.processes)

    def steps(self) -> int:
        path = self.out / "metrics.jsonl"
        return path.read_text().count("\n") if path.exists() else 0

    def ends(self) -> list[int]:
        return [process.wait(300) for process in self.processes]


@pytest.mark.parametrize("count", [2, 3])
def test_hosts_train_as_one_process_does(hosts, work, losses, tmp_path, count):
    run = Run(hosts(count), count, work, tmp_path / "out")
    assert run.ends() == [0] * count, run.text()
    assert losses_of(run.out) == pytest.approx(losses, rel=1e-4)


def test_a_cable_that_is_out_for_5_s_costs_these_5_s(hosts, work, losses, tmp_path):
    network = hosts(2)
    run = Run(network, 2, work, tmp_path / "out")
    run.wait_for(lambda: run.steps() >= 10)
    network.plug(1, False)
    time.sleep(5)
    assert run.steps() < STEPS
    network.plug(1, True)
    assert run.ends() == [0, 0], run.text()
    assert losses_of(run.out) == pytest.approx(losses, rel=1e-4)
    assert "restart" not in run.text() + run.text(1)


def test_a_cable_that_stays_out_is_told_and_the_run_goes_on_when_it_is_in(
    hosts, work, losses, tmp_path
):
    network = hosts(2)
    run = Run(network, 2, work, tmp_path / "out")
    run.wait_for(lambda: run.steps() >= 30)
    network.plug(1, False)
    run.wait_for(lambda: "restart 1 of" in run.text())
    assert "the scheduler (" in run.text() and "timed out" in run.text()
    network.plug(1, True)
    assert run.ends() == [0, 0], run.text() + run.text(1)
    assert "resumed after step" in run.text()
    assert losses_of(run.out) == pytest.approx(losses, rel=1e-4)


def test_a_worker_that_dies_on_another_host_is_named_there_and_all_start_again(
    hosts, work, losses, tmp_path
):
    run = Run(hosts(2), 2, work, tmp_path / "out")
    run.wait_for(lambda: run.steps() >= 30)
    os.kill(run.worker(1), signal.SIGKILL)
    assert run.ends() == [0, 0], run.text() + run.text(1)
    assert "was killed by SIGKILL" in run.text(1)
    assert "worker 1 (process" in run.text() and "on host1) died" in run.text()
    assert "resumed after step" in run.text()
    assert losses_of(run.out) == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize(("seconds", "restarts"), [(5, False), (40, True)])
def test_a_host_that_stands_still_is_waited_for_or_counts_as_dead(
    hosts, work, losses, tmp_path, seconds, restarts
):
    run = Run(hosts(2), 2, work, tmp_path / "out")
    run.wait_for(lambda: run.steps() >= 30)
    worker = run.worker(1)
    os.kill(worker, signal.SIGSTOP)
    time.sleep(seconds)
    os.kill(worker, signal.SIGCONT)
    assert run.ends() == [0, 0], run.text() + run.text(1)
    assert ("restart 1 of" in run.text()) == restarts
    assert losses_of(run.out) == pytest.approx(losses, rel=1e-4)


def test_a_host_that_never_comes_back_ends_the_run_with_a_reason(hosts, work, tmp_path):
    network = hosts(2)
    run = Run(network, 2, work, tmp_path / "out", "--restarts=1", "--cluster_time_out=30")
    run.wait_for(lambda: run.steps() >= 30)
    network.plug(1, False)
    assert run.ends() == [1, 1]
    for n in (0, 1):
        assert "gave up after 1 restart" in run.text(n), run.text(n)
