"""A command that is killed at a random moment: by its seconds, or at the n-th change of a file."""

import ctypes
import math
import os
import random
import secrets
import select
import signal
import struct
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MOMENTS = {"first second": 1, "any moment": 2, "change of a file": 3}  # and how often each is drawn
# seconds that only a command that hangs takes, even on a machine with a load of 30
PATIENCE = 600  # to end after a signal
LONGEST = 1800  # to end, or to start to serve, if nobody kills it
TOGETHER = 60  # until the last of its processes has ended, too
_LOOK = 0.05  # seconds between two looks at a command that changes no file

_MODIFY, _CLOSE, _MOVED, _CREATE, _DELETE, _FOLDER = 0x2, 0x8, 0x80, 0x100, 0x200, 0x40000000


class LostError(Exception):
    """A command did not survive: it ended otherwise than a killed one does, or left half a file."""


@dataclass(frozen=True)
class Usual:
    """What a command takes that nobody kills."""

    seconds: float
    changes: int
    """Of files."""


@dataclass(frozen=True)
class Kill:
    """When a command is killed, with which signal, and which of its workers."""

    moment: str
    place: float
    """Where in that moment, in [0, 1): of the first second, of all seconds, of all changes."""
    number: signal.Signals
    victim: float
    """Which of the workers, in [0, 1)."""

    @classmethod
    def draw(cls, rng: random.Random) -> "Kill":
        [moment] = rng.choices(list(MOMENTS), list(MOMENTS.values()))
        number = rng.choice([signal.SIGKILL, signal.SIGTERM])
        return cls(moment, rng.random(), number, rng.random())

    def __str__(self) -> str:
        return f"{self.number.name} at {self.place:.3f} of {self.moment}"


class Changes:
    """Counts the changes of files below a folder: made, written, closed, renamed, removed."""

    def __init__(self, folder: Path) -> None:
        self.count = 0
        self._library = ctypes.CDLL(None, use_errno=True)
        self._handle = self._library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._handle < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._folders: dict[int, Path] = {}
        self._watch(folder)

    def wait(self, seconds: float) -> None:
        """Returns after a change, or after ``seconds``."""
        if not select.select([self._handle], [], [], max(0.0, seconds))[0]:
            return
        data, at = os.read(self._handle, 1 << 16), 0
        while at < len(data):
            watched, mask, _, length = struct.unpack_from("iIII", data, at)
            name = os.fsdecode(data[at + 16 : at + 16 + length].rstrip(b"\0"))
            at += 16 + length
            if not mask & _FOLDER:
                self.count += 1
            elif mask & (_CREATE | _MOVED):
                self._watch(self._folders[watched] / name)

    def close(self) -> None:
        os.close(self._handle)

    def _watch(self, folder: Path) -> None:
        mask = _MODIFY | _CLOSE | _MOVED | _CREATE | _DELETE
        number = self._library.inotify_add_watch(self._handle, os.fsencode(folder), mask)
        if number >= 0:  # else it is gone already
            self._folders[number] = folder
            for inner in folder.iterdir():
                if inner.is_dir() and not inner.is_symlink():
                    self._watch(inner)


class Command:
    """A command with all processes that it starts; none of them outlives the block."""

    def __init__(
        self, words: list[str], folder: Path, log: Path, several: bool, **environment: str
    ) -> None:
        """folder: where it runs, and whose changes count. several: it starts the workers."""
        self.log, self._several = log, several
        self._mark = f"VAR_TORTURE={secrets.token_hex(8)}"  # all of its processes inherit it
        name, _, value = self._mark.partition("=")
        self._changes = Changes(folder)
        self._began = time.monotonic()
        with log.open("a") as file:
            self.process = subprocess.Popen(
                words,
                cwd=folder,
                env=os.environ | environment | {name: value},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self.process.wait()
        self._changes.close()

    def wait_for(self, kill: Kill, usual: Usual) -> bool:
        """Waits for the moment of ``kill``; False if the command ended before."""
        while not self._workers() and self.process.poll() is None:
            self._changes.wait(_LOOK)
        begin, seconds, goal = time.monotonic(), math.inf, math.inf
        if kill.moment == "change of a file":
            goal = 1 + int(kill.place * usual.changes)
        else:
            seconds = kill.place * (usual.seconds if kill.moment == "any moment" else 1.0)
        while self.process.poll() is None:
            left = begin + seconds - time.monotonic()
            if left <= 0 or self._changes.count >= goal:
                return True
            self._changes.wait(min(left, _LOOK))
        return False

    def kill(self, kill: Kill) -> None:
        """Sends the signal to one of the workers."""
        if workers := self._workers():  # else they have just ended
            with suppress(ProcessLookupError):
                os.kill(workers[int(kill.victim * len(workers))], kill.number)

    def end(self, after: Kill | None = None) -> int:
        """The exit code. Raises LostError if one of its processes does not end in time.

        after: what it has to end of.
        """
        deadline = time.monotonic() + (LONGEST if after is None else PATIENCE)
        while self.process.poll() is None:
            if time.monotonic() > deadline:
                raise LostError(
                    f"still runs {PATIENCE} s after {after}" if after else "does not end"
                )
            self._changes.wait(_LOOK)
        self._changes.wait(0)
        deadline = time.monotonic() + TOGETHER
        while left := self._processes():
            if time.monotonic() > deadline:
                raise LostError(f"leaves {len(left)} process(es) {TOGETHER} s after its end")
            time.sleep(_LOOK)
        return self.process.returncode

    @property
    def taken(self) -> Usual:
        """What it has taken until now."""
        return Usual(time.monotonic() - self._began, self._changes.count)

    def _workers(self) -> list[int]:
        """The processes that may be killed: the command itself, or the workers that it started."""
        return self._processes("MS_ROLE=MS_WORKER") if self._several else [self.process.pid]

    def _processes(self, *more: str) -> list[int]:
        """Those whose environment has the mark, and ``more``."""
        wanted, found = {text.encode() for text in (self._mark, *more)}, []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):  # it has ended, or is somebody else's
                if wanted <= {*path.read_bytes().split(b"\0")}:
                    found.append(int(path.parent.name))
        return sorted(found)
