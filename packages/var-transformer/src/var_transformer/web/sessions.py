"""The open sessions, their queued jobs and their uploads, and the limits on these."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from var_transformer.web import limits
from var_transformer.web.auth import RefusedError

if TYPE_CHECKING:  # Gradio is imported once its folder is made
    from gradio.queueing import Event, Queue


class Sessions:
    """The open sessions, the jobs they have in the page's queue, and the uploads of addresses.

    A session is the name that a browser or client gives itself; without one, each job is a session
    of its own, named by its number.
    """

    def __init__(self) -> None:
        self._listening: Counter[str] = Counter()
        self._open: Counter[str] = Counter()
        self._arriving: Counter[str] = Counter()  # bytes of uploads in progress
        self._uploads: defaultdict[str, dict[Path, int]] = defaultdict(dict)
        self.queue: Queue  # Gradio's, once there is a page

    @contextmanager
    def stream(self, session: str, results: bool) -> Iterator[None]:
        """Counts a session while an answer is streamed to it: its results, or a heartbeat."""
        counter = self._listening if results else self._open
        counter[session] += 1
        try:
            yield
        finally:
            counter[session] -= 1
            if not counter[session]:
                del counter[session]

    # ------------------------------------------------------------ jobs
    def check_jobs(self, session: str | None, address: str) -> None:
        """Raises RefusedError if a session, its address or all visitors have too many jobs.

        session: None for a job that is a session of its own.
        """
        jobs = self._jobs()
        of_session = sum(job.session_hash == session for job in jobs)
        of_address = sum(_address(job) == address for job in jobs)
        if of_session >= limits.MAX_JOBS_OF_SESSION or of_address >= limits.MAX_JOBS_OF_ADDRESS:
            waiting = of_session if of_session >= limits.MAX_JOBS_OF_SESSION else of_address
            raise RefusedError(
                429, f"You have {waiting} jobs in the queue. Wait until one has ended."
            )
        if len(jobs) >= limits.MAX_WAITING:
            raise RefusedError(503, f"{len(jobs)} jobs wait for the models. Try again in a while.")

    def _jobs(self) -> list["Event"]:
        return list(self.queue.event_ids_to_events.values())

    def pending(self, session: str | None) -> bool:
        """Whether a session has a job in the queue."""
        return any(job.session_hash == session for job in self._jobs())

    def session_of(self, job: str) -> str | None:
        """The session of a job, even of one that has ended and whose results wait; or None."""
        if job in self.queue.event_ids_to_events:
            return self.queue.event_ids_to_events[job].session_hash
        ended = self.queue.pending_event_ids_session.items()
        return next((session for session, jobs in ended if job in jobs), None)

    def wait_for_listener(self, session: str) -> bool:
        """Whether anyone waits for a session's job that is about to begin."""
        joined = [job.enqueue_time for job in self._jobs() if job.session_hash == session]
        end = min(joined, default=0.0) + limits.LISTENER_SECONDS
        while not self.is_waiting(session):
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    def is_waiting(self, session: str) -> bool:
        """Whether anyone listens for the results of a session."""
        return self._listening[session] > 0

    def gone(self, session: str) -> str | None:
        """Why no one waits for a session's running job any more, or None."""
        if self.is_waiting(session):
            return None
        return "the visitor stopped it" if self._open[session] else "the visitor left"

    # ------------------------------------------------------------ uploads
    @contextmanager
    def upload(self, address: str, size: int) -> Iterator[None]:
        """Counts ``size`` bytes while they arrive from an address.

        Raises RefusedError if they are too many, together with those in the folder.
        """
        if size > limits.MAX_UPLOAD:
            raise RefusedError(413, f"An upload may have {limits.MAX_UPLOAD} bytes.")
        for files in self._uploads.values():
            for path in [path for path in files if not path.exists()]:
                del files[path]
        held = {each: sum(files.values()) for each, files in self._uploads.items()}
        mine = held.get(address, 0) + self._arriving[address] + size
        everybodys = sum(held.values()) + sum(self._arriving.values()) + size
        if mine > limits.MAX_UPLOADS_OF_ADDRESS or everybodys > limits.MAX_UPLOADS:
            raise RefusedError(429, "Too much was uploaded. Wait until older files are deleted.")
        self._arriving[address] += size
        try:
            yield
        finally:
            self._arriving[address] -= size

    def note_upload(self, address: str, path: Path) -> None:
        """Counts a file of an address until it is deleted."""
        self._uploads[address][path] = max(path.stat().st_size, limits.MIN_FILE)


def _address(job: "Event") -> str:
    client = job.request.client
    return client.host if client is not None else ""
