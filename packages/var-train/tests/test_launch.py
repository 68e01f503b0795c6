"""The launcher: who died is named, all start again, and no process is left."""

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from var_tokenizer.common import InputError
from var_train import launch

# A worker notes its process in a file; the scheduler, which only real workers need, waits.
BEGIN = """
import os, signal, sys, time
from pathlib import Path
if os.environ["MS_ROLE"] == "MS_SCHED":
    time.sleep(600)
rank = int(os.environ["MS_NODE_ID"])
attempt = len(list(Path("logs").iterdir()))
def note(name):
    Path(f"{name}-{rank}-{attempt}.part").write_text(str(os.getpid()))
    Path(f"{name}-{rank}-{attempt}.part").rename(f"{name}-{rank}-{attempt}")
def say(text):
    os.write(2, text if isinstance(text, bytes) else f"{text}\\n".encode())
def is_alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] not in "ZX"
    except OSError:
        return False
note("process")
"""


@pytest.fixture(autouse=True)
def in_an_empty_folder(monkeypatch, tmp_path, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["launch"])
    caplog.set_level(logging.INFO)


def run(code: str, restarts: int = 3, workers: int = 2) -> int:
    words = [f"--worker_num={workers}", f"--restarts={restarts}", "python", "-c", BEGIN + code]
    result = launch.launch(*launch.read_options(words))
    for path in Path().glob("process-*"):
        assert not Path("/proc", path.read_text()).exists(), path  # reaped, so not even a zombie
    return result


def test_a_worker_that_dies_at_once_is_named_and_all_start_again(caplog):
    code = """
if attempt == 1 and rank == 1:
    say("nearly there")
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(600 if attempt == 1 else 0)
"""
    assert run(code) == 0
    process = Path("process-1-1").read_text()
    died = f"worker 1 (process {process}) was killed by SIGKILL"
    said = caplog.messages
    assert next(m for m in said if " was killed " in m or " ended " in m).startswith(died)
    assert "worker 1, last lines: nearly there" in said
    assert any("restart 1 of at most 3" in m for m in said)
    assert not any(m.startswith(("worker 0 (", "the scheduler (")) for m in said)
    assert Path("logs/attempt-1/worker_1.log").read_text() == "nearly there\n"  # kept
    assert Path("process-0-2").exists() and not Path("process-0-3").exists()


@pytest.mark.parametrize(
    ("code", "attempts", "result"),
    [(0, 1, 0), (1, 3, 1), (2, 1, 2), (130, 1, 130), (-signal.SIGSEGV, 3, 1)],
)
def test_deaths_are_restarted_but_unusable_input_and_interrupts_are_not(
    caplog, code, attempts, result
):
    end = f"os.kill(os.getpid(), {-code})" if code < 0 else f"sys.exit({code})"
    other = f"if rank == 0 and {code}:\n    time.sleep(600)\n"
    assert run(other + end, restarts=2) == result
    assert len(list(Path().glob("process-1-*"))) == attempts
    assert any("gave up after 2" in m for m in caplog.messages) == (result == 1)
    cause = "was killed by SIGSEGV" if code < 0 else f"ended with exit code {code}"
    assert sum(cause in m for m in caplog.messages) == (attempts if code else 0)


@pytest.mark.parametrize("here", [True, False])
def test_a_worker_that_ends_since_another_died_is_blamed_only_if_that_is_elsewhere(caplog, here):
    code = f"""
if rank == 0:
    os.kill(os.getpid(), signal.SIGKILL) if {here} else time.sleep(600)
while {here} and not Path("process-0-1").exists():
    time.sleep(0.01)
while {here} and is_alive(Path("process-0-1").read_text()):
    time.sleep(0.01)
say("ERROR: worker 7 died")
sys.exit(3)
"""
    assert run(code, restarts=0) == 1
    named = [m[:8] for m in caplog.messages if "was killed by" in m or "ended with" in m]
    assert named == ["worker 0" if here else "worker 1"]
    assert ("worker 1, last lines: ERROR: worker 7 died" in caplog.messages) != here


def test_lines_of_the_first_worker_are_repeated_with_their_levels_and_harmless(caplog):
    code = r"""
if rank == 0:
    say("WARNING: a name" + chr(27) + "[2J" + chr(13))
    say(bytes([255, 10]))
    say("x" * 100_000)
    say(b"an unfinished line")
else:
    say("not shown")
"""
    assert run(code) == 0
    found = [
        (r.levelname, r.getMessage()) for r in caplog.records if "worker 0: " in r.msg % r.args
    ]
    assert found[0] == ("WARNING", r"worker 0: a name\x1b[2J\r")
    assert found[1] == ("INFO", r"worker 0: \xff")
    assert len(found[2][1]) < 1100
    assert "not shown" not in caplog.text


@pytest.mark.parametrize("stubborn", [False, True])
def test_an_interrupt_lets_workers_save_and_leaves_none(monkeypatch, caplog, stubborn):
    monkeypatch.setattr(launch, "_GRACE", 0.5 if stubborn else 600)
    code = f"""
def save(number, frame):
    if rank == 1 or not {stubborn}:
        note("saved")
        os._exit(130)
signal.signal(signal.SIGTERM, save)
note("ready")
while True:
    time.sleep(600)
"""

    def interrupt() -> None:
        while not all(Path(f"ready-{rank}-1").exists() for rank in (0, 1)):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt, daemon=True).start()
    assert run(code) == 130
    assert Path("saved-1-1").exists() and Path("saved-0-1").exists() != stubborn
    assert not any("died" in m or "restart" in m for m in caplog.messages)
    assert any(m.startswith("1 worker(s) are killed") for m in caplog.messages) == stubborn


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_restart_waits_for_the_workers_of_other_hosts(monkeypatch, caplog, interrupted):
    monkeypatch.setattr(launch, "_SETTLE", 600 if interrupted else 0.5)
    code = "os.kill(os.getpid(), signal.SIGKILL) if attempt == 1 else sys.exit(0)"
    options, restarts = launch.read_options(
        ["--worker_num=2", "--local_worker_num=1", "--node_rank=1", "python", "-c", BEGIN + code]
    )

    def interrupt() -> None:
        while not any("waiting" in m for m in caplog.messages):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    if interrupted:
        threading.Thread(target=interrupt, daemon=True).start()
    begin = time.monotonic()
    assert launch.launch(options, restarts) == (130 if interrupted else 0)
    assert time.monotonic() - begin > 0.5 or interrupted
    assert Path("process-1-2").exists() != interrupted


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no command to run"),
        (["--restarts", "-1", "python", "x.py"], "restarts is -1"),
        (["--worker_num=0", "python", "x.py"], "worker_num is 0"),
        (["--worker_num=2", "--local=3", "python", "x.py"], "local_worker_num is 3; expected at"),
        (["python", "-m", "var_train.run", "--no-resume"], "--no-resume would lose"),
    ],
)
def test_options_that_cannot_work_are_refused(words, said):
    with pytest.raises(InputError, match=said):
        launch.read_options(words)


def test_options_of_msrun_are_taken_and_those_of_the_command_left_alone():
    command = ["python", "-m", "var_train.run", "--restarts", "x", "--log_dir=y"]
    words = ["--worker_num", "16", "--local_worker_num=8", "--node_rank=1", "--restarts", "5"]
    options, restarts = launch.read_options([*words, *command])
    assert (options.worker_num, options.local_worker_num, options.node_rank) == (16, 8, 1)
    assert (options.log_dir, options.master_port, restarts) == ("logs", 8118, 5)
    assert [options.task_script, *options.task_script_args] == command
    alone, restarts = launch.read_options(["--worker_num=4", *command])
    assert (alone.local_worker_num, alone.master_port, restarts) == (4, 0, 3)
