"""``python -m var_train.launch``: runs a command on many workers, again if one of them dies.

It takes the options of MindSpore's ``msrun``, which starts the workers for it, and one of its own.
``msrun`` by itself ends at the first death, which it reports by the number of a process alone.
"""

import argparse
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from mindspore.parallel.cluster.process_entity import _ProcessManager
from mindspore.parallel.cluster.run import get_args
from var_tokenizer.common import InputError, check_integer, quoted
from var_tokenizer.common.command import INTERRUPTED, UNUSABLE, exit_codes

from var_train.parallel.watch import OTHER_DIED
from var_train.parallel.workers import LAUNCHER
from var_train.training.loop import interrupts

log = logging.getLogger("var_train")  # not "__main__", of which nothing below a warning is shown

_POLL = 0.1  # seconds between two looks at the workers
_GRACE = 10.0  # seconds that workers have to end after the first has: after a signal to stop all
_SETTLE = 20.0  # seconds in which the workers of other hosts have noticed a death and ended, too
_LAST = 10  # lines of a dead worker to repeat
_LONGEST = 10_000  # bytes of a line to keep


def main() -> None:
    """The command; see ``exit_codes`` for how it ends, and ``launch``."""
    with exit_codes("interrupted; the same command continues from the last checkpoint"):
        options, restarts = read_options(sys.argv[1:])
        if code := launch(options, restarts):
            sys.exit(code)


def read_options(words: Sequence[str]) -> tuple[argparse.Namespace, int]:
    """The options of ``msrun``, and how many restarts are allowed.

    Those of ``msrun`` differ in this: ``local_worker_num`` is ``worker_num`` if it is not given,
    ``log_dir`` is "logs", and ``master_port`` is 0, for any free one, if it is not given and all
    workers are on this machine. Raises InputError for unusable ones.
    """
    begin = next((i for i, w in enumerate(words) if w in ("python", "python3")), len(words))
    parser = argparse.ArgumentParser(
        "python -m var_train.launch",
        "%(prog)s [--restarts N] [OPTION OF msrun ...] python -m var_train.run ...",
        "Runs a command on many workers, and again from its newest checkpoint if one dies.",
        "Takes the options of msrun, such as --worker_num=8 (see msrun --help).",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--restarts", type=int, default=3, help="restarts at most, 0 for none (default: 3)"
    )
    own, others = parser.parse_known_args(words[:begin])
    check_integer("restarts", own.restarts, 0)
    command = words[begin:]
    if not command:
        raise InputError("no command to run; expected python -m var_train.run ... at the end")
    if own.restarts and {"--no-resume", "--no_resume"} & set(command):
        raise InputError(
            "--no-resume would lose at each restart what was trained; expected it with "
            "--restarts 0, or another --out"
        )
    sys.argv = ["msrun", *others, *command]
    options = get_args()

    def given(option: str) -> bool:
        names = (word.partition("=")[0] for word in others)  # argparse takes the first letters, too
        return any(len(name) > 2 and option.startswith(name) for name in names)

    check_integer("worker_num", options.worker_num, 1)
    if not given("--local_worker_num"):
        options.local_worker_num = options.worker_num
    check_integer("local_worker_num", options.local_worker_num, 1)
    if options.local_worker_num > options.worker_num:
        raise InputError(
            f"local_worker_num is {options.local_worker_num}; expected at most "
            f"{options.worker_num}, the worker_num"
        )
    if not given("--master_port") and options.local_worker_num == options.worker_num:
        options.master_port = 0
    options.log_dir = options.log_dir or "logs"
    return options, own.restarts


def launch(options: argparse.Namespace, restarts: int) -> int:
    """Runs all workers until they have ended, again after a death; returns the exit code.

    It is 0 if all have ended well, 2 if one found its input unusable and 130 if one was interrupted
    or this process was: none of these is restarted. It is 1 after a death too many.

    options: as ``read_options`` returns them. The logs of attempt n, from 1, are in
    ``log_dir/attempt-n``; lines of the first worker here, or of those in ``tail_worker_log``, are
    repeated in this process's log.
    """
    with interrupts() as interrupted:
        for attempt in range(1, restarts + 2):
            changes = {
                "log_dir": str(Path(options.log_dir) / f"attempt-{attempt}"),
                "master_port": options.master_port or _free_port(),
                "join": False,  # or msrun would wait, and write raw lines to the terminal
            }
            with _started(argparse.Namespace(**{**vars(options), **changes})) as processes:
                code = _until_end(processes, interrupted)
            if code in (0, UNUSABLE, INTERRUPTED):
                return code
            if attempt <= restarts:
                log.warning(
                    "all workers start again, from the newest checkpoint if there is one; "
                    "restart %d of at most %d",
                    *(attempt, restarts),
                )
                if options.local_worker_num < options.worker_num and _sleep(interrupted):
                    return INTERRUPTED
    log.error("gave up after %d restart(s)", restarts)
    return code


def _sleep(interrupted: Callable[[], bool]) -> bool:
    """Waits until no worker of the last attempt is left on other hosts; whether it was interrupted.

    A new worker would join those, and wait for what they never send.
    """
    log.info("waiting %.0f s until the workers of other hosts have ended, too", _SETTLE)
    end = time.monotonic() + _SETTLE
    while time.monotonic() < end and not interrupted():
        time.sleep(_POLL)
    return interrupted()


@dataclass(frozen=True)
class _Process:
    """A worker, or the scheduler through which they find one another."""

    name: str
    process: subprocess.Popen
    log: "_LogFile"
    shown: bool
    """Whether its lines are repeated here."""
    works: bool = True


class _LogFile:
    """A log that another process writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read, self._unfinished = 0, b""
        self._last: deque[str] = deque(maxlen=_LAST)

    def new_lines(self) -> list[str]:
        """The lines that were finished since the last call."""
        text = b""
        with suppress(OSError), self.path.open("rb") as file:  # removed: the run matters more
            file.seek(self._read)
            text = file.read()
        self._read += len(text)
        *whole, unfinished = (self._unfinished + text).split(b"\n")
        self._unfinished = unfinished[:_LONGEST]
        lines = [os.fsdecode(line[:_LONGEST]) for line in whole]
        self._last.extend(lines)
        return lines

    def last_lines(self) -> list[str]:
        """The last few, an unfinished one among them."""
        return [*self._last, *([os.fsdecode(self._unfinished)] if self._unfinished else [])]


@contextmanager
def _started(options: argparse.Namespace) -> Iterator[list[_Process]]:
    """Lets ``msrun`` start its processes; none is left when the block has ended."""
    manager = _ProcessManager(options)
    try:
        with _environment(), redirect_stdout(StringIO()):
            manager.run()
        folder, prefix = Path(options.log_dir), manager.format_worker_log_name()
        all_here = options.local_worker_num == options.worker_num
        first = 0 if all_here else max(options.node_rank, 0) * options.local_worker_num
        tails = options.tail_worker_log
        shown = {str(first)} if tails == "-1" else set(tails.split(","))
        processes = []
        for n, process in enumerate(manager.cgn_processes, first):
            # without a node_rank, MindSpore gives out the numbers later
            name = f"worker {n}" if all_here or options.node_rank >= 0 else f"local worker {n}"
            file = _LogFile(folder / f"{prefix}_{n}.log")
            processes.append(_Process(name, process, file, str(n) in shown))
        log.info(
            "started %d worker(s), processes %s; their logs are in %s",
            len(processes),
            " ".join(str(p.process.pid) for p in processes),
            quoted(folder),
        )
        if manager.msn_process is not None:
            file = _LogFile(folder / "scheduler.log")
            scheduler = _Process("the scheduler", manager.msn_process, file, False, works=False)
            processes.append(scheduler)
        yield processes
    finally:
        _kill(manager)


@contextmanager
def _environment() -> Iterator[None]:
    """What ``msrun`` passes on; what it adds for one process would confuse the next attempt."""
    before = dict(os.environ)
    # it looks up "python"
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), before.get("PATH", "")))
    os.environ[LAUNCHER] = str(os.getpid())
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _kill(manager: _ProcessManager) -> None:
    for process in manager.cgn_processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # each leads a group of its own
    scheduler = [] if manager.msn_process is None else [manager.msn_process]
    for process in scheduler:
        process.kill()
    for process in (*manager.cgn_processes, *scheduler):
        process.wait()


def _until_end(processes: list[_Process], interrupted: Callable[[], bool]) -> int:
    """Waits until all workers have ended or one has died, which it reports; returns a code.

    After an interrupt it asks all workers to save and end, and waits for them.
    """
    workers = [p for p in processes if p.works]
    asked, deadline = False, float("inf")
    while True:
        codes = [p.process.poll() for p in workers]
        failed = [p for p in processes if p.process.poll()]
        _show(processes)
        if all(code == 0 for code in codes):
            return 0
        if asked and (None not in codes or time.monotonic() > deadline):
            if None in codes:
                log.error(
                    "%d worker(s) are killed, which did not end %.0f s after another process: "
                    "steps since the last checkpoint are lost",
                    *(codes.count(None), _GRACE),
                )
            return INTERRUPTED
        if asked and (failed or any(code is not None for code in codes)):
            deadline = min(deadline, time.monotonic() + _GRACE)
        elif interrupted() and not asked:
            asked = True
            for worker in workers:
                worker.process.terminate()
        elif failed and not asked:
            return _report(processes, failed)
        time.sleep(_POLL)


def _report(processes: list[_Process], failed: list[_Process]) -> int:
    """Logs which processes died, why, and their last lines; returns the code of ``launch``."""
    if all(p.process.returncode == OTHER_DIED for p in failed):
        time.sleep(_POLL)  # the other is perhaps on this machine, and was asked before it died
        failed = [p for p in processes if p.process.poll()]
        _show(processes)
    codes = {p.process.returncode for p in failed}
    for p in failed:
        if p.process.returncode == OTHER_DIED and codes != {OTHER_DIED}:
            continue  # it says so of a worker that is named here
        log.error("%s (process %d) %s", p.name, p.process.pid, _cause(p.process.returncode))
        for line in p.log.last_lines():
            log.error("%s, last lines: %s", p.name, quoted(line))
        log.error("%s: its whole log is %s", p.name, quoted(p.log.path.resolve()))
    return next((code for code in (UNUSABLE, INTERRUPTED) if code in codes), 1)


def _cause(code: int) -> str:
    """What ended a process with this code of ``Popen``."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    full = ", as by a system whose memory is full" if name == "SIGKILL" else ""
    return f"was killed by {name}{full}"


def _show(processes: list[_Process]) -> None:
    """Repeats new lines, with their levels."""
    for p in processes:
        for line in p.log.new_lines():
            level, _, message = line.partition(": ")
            known = level in ("INFO", "WARNING", "ERROR")
            if p.shown:
                number = logging.getLevelName(level) if known else logging.INFO
                log.log(number, "%s: %s", p.name, quoted(message if known else line))


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


if __name__ == "__main__":
    main()
