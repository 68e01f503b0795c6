"""Workers watch one another: when one dies, the others log which one and stop.

A collective would wait many minutes for a dead worker. So every worker keeps a heartbeat in the
shared run folder: a file with its process and last log line, touched every two seconds. No clock
is compared with another: clocks of hosts differ, and jump.
"""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from var_tokenizer.common import InputError, holding, quoted, replacing

from var_train.parallel import workers

log = logging.getLogger(__name__)

OTHER_DIED = 3
"""The exit code of a worker that ends because another one died."""

_TOUCH = 2.0  # seconds between two heartbeats
# Own heartbeats without one of a worker of another machine, which counts as dead: within 15 s.
# A compilation keeps a worker from beating for 3 s at most (depth 24, a busy machine).
_SILENCE = 6
_POLL = 0.1  # seconds between two looks: msrun kills the others after a second, and logs nothing


class _LastLine(logging.Handler):
    """Writes this worker's heartbeat."""

    def __init__(self, path: Path) -> None:
        super().__init__(logging.INFO)
        self.path = path

    def emit(self, record: logging.LogRecord) -> None:
        self.note(record.getMessage())

    def note(self, text: str) -> None:
        """Makes the first line of ``text`` this worker's last log line, as the others see it."""
        line = text.partition("\n")[0]
        life = {"host": socket.gethostname(), "process": os.getpid(), "line": line}
        life["machine"] = _MACHINE
        # others report a full disk
        with suppress(OSError, InputError), replacing(self.path) as temporary:
            temporary.write_text(json.dumps(life))


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """While the block runs, no other command of ours writes to ``folder``; see ``holding``.

    Every worker calls it. Raises InputError on all of them if another command is at work there.
    """
    with ExitStack() as stack:
        refusal = None
        if workers.rank() == 0:
            try:
                stack.enter_context(holding(folder))
            except InputError as error:
                refusal = error
        if workers.any_worker(refusal is not None):
            raise refusal or InputError(f"{quoted(folder)}: worker 0 says why it is not to be used")
        yield


@contextmanager
def watched(folder: Path) -> Iterator[None]:
    """While the block runs, the death of another worker ends this one with ``OTHER_DIED``.

    folder: shared by all workers. Does nothing for a single worker. After an exception the
    heartbeat file stays, untouched, so that the others notice.

    Raises InputError if the folder cannot be written.
    """
    if workers.size() == 1:
        yield
        return
    folder = folder / "workers"
    paths = [folder / f"{rank}.json" for rank in range(workers.size())]
    own = paths.pop(workers.rank())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        own.unlink(missing_ok=True)
        if workers.rank() == 0:  # of an earlier run on more workers
            for path in set(folder.glob("*.json")) - {own, *paths}:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{quoted(folder)}: cannot write here: {error.strerror}") from error
    handler, stop = _LastLine(own), threading.Event()
    logger = logging.getLogger("var_train")
    logger.addHandler(handler)
    log.info("worker %d of %d", workers.rank(), workers.size())
    workers.wait_for_all()  # until no heartbeat of an earlier run is left
    thread = threading.Thread(target=look, args=(own, paths, stop), daemon=True)
    thread.start()
    try:
        yield
    except Exception as error:
        handler.note(str(error) if isinstance(error, InputError) else repr(error))
        raise
    except KeyboardInterrupt:
        handler.note("interrupted")
        raise
    except SystemExit:
        own.unlink(missing_ok=True)
        raise
    else:
        own.unlink(missing_ok=True)
        with suppress(OSError):  # only the last worker finds it empty
            folder.rmdir()
    finally:
        stop.set()
        thread.join()
        logger.removeHandler(handler)


def look(own: Path, others: list[Path], stop: threading.Event) -> None:
    """Touches the heartbeat ``own`` until ``stop``; ends the process if one of ``others`` died."""
    touched, beats = 0.0, 0
    heard: dict[Path, tuple[int, int]] = {}  # its time, and the number of our beats until then
    while not stop.wait(_POLL):
        if time.monotonic() > touched + _TOUCH:
            touched = time.monotonic()
            with suppress(OSError):
                os.utime(own)  # not touch, which would make it again after the end
                beats += 1
        for path in others:
            try:
                life = json.loads(path.read_text())
                beat = path.stat().st_mtime_ns
                process, here = int(life["process"]), life["machine"] == _MACHINE
                host, line = quoted(str(life["host"])), quoted(str(life["line"]))
            except OSError:  # it has finished, or has not begun
                continue
            except (ValueError, TypeError, KeyError, RecursionError):  # not by this version
                continue
            if path not in heard or heard[path][0] != beat:
                heard[path] = beat, beats
            silent = beats - heard[path][1] > _SILENCE
            if (not _runs(process)) if here else silent:
                log.error(
                    "worker %s (process %d on %s) died; its last log line: %s",
                    *(path.stem, process, host, line),
                )
                logging.shutdown()
                os._exit(OTHER_DIED)


def _machine() -> str:
    """What the processes share that see one another; containers may share a host's name, too."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return socket.gethostname()


_MACHINE = _machine()


def _runs(process: int) -> bool:
    """Whether a process of this machine is alive; a zombie is not."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"
