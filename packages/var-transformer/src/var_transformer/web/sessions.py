"""Who is here, who waits, and who has had enough: turns at the models, and uploads."""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # Gradio is imported once its folder is made
    from gradio.queueing import Event, Queue

MAX_WAITING = 64  # jobs in the queue
MAX_JOBS = 4  # of one session, with the one that runs
MAX_JOBS_OF_ADDRESS = MAX_WAITING // 2  # many visitors may share one, behind a proxy
MAX_UPLOAD = 20 * 2**20  # bytes of one upload
MAX_UPLOADS_OF_ADDRESS = 256 * 2**20  # bytes that lie in the page's folder
MAX_UPLOADS = 2**30  # bytes, of all together
_BLOCK = 4096  # bytes that the smallest file takes
_GRACE = 3.0  # seconds from joining the queue to listening for the result


class RefusedError(Exception):
    """A request is not answered. Carries the HTTP status and a sentence for its sender."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class Visits:
    """The sessions that are open, and the jobs that they have in the page's queue.

    A session is what a browser or client calls itself, or the number of a job where it does not.
    """

    def __init__(self) -> None:
        self._listening: Counter[str] = Counter()
        self._open: Counter[str] = Counter()
        self._coming: Counter[str] = Counter()  # bytes of uploads that go on
        self._uploads: defaultdict[str, dict[Path, int]] = defaultdict(dict)
        self.queue: Queue  # that of Gradio, once there is a page

    @contextmanager
    def stream(self, session: str, results: bool) -> Iterator[None]:
        """While an answer is streamed to a session: its results, or a sign of life."""
        counter = self._listening if results else self._open
        counter[session] += 1
        try:
            yield
        finally:
            counter[session] -= 1
            if not counter[session]:
                del counter[session]

    # ------------------------------------------------------------ turns
    def check_turn(self, session: str | None, address: str) -> None:
        """Raises RefusedError where a session, its address or all have enough jobs already.

        session: or None for a job that is a session of its own.
        """
        jobs = self._jobs()
        of_session = sum(job.session_hash == session for job in jobs)
        of_address = sum(_address(job) == address for job in jobs)
        if of_session >= MAX_JOBS or of_address >= MAX_JOBS_OF_ADDRESS:
            waiting = of_session if of_session >= MAX_JOBS else of_address
            raise RefusedError(
                429, f"You have {waiting} jobs in the queue. Wait until one has ended."
            )
        if len(jobs) >= MAX_WAITING:
            raise RefusedError(503, f"{len(jobs)} jobs wait for the models. Try again in a while.")

    def _jobs(self) -> list["Event"]:
        return list(self.queue.event_ids_to_events.values())

    def pending(self, session: str | None) -> bool:
        """Whether a session has a job in the queue."""
        return any(job.session_hash == session for job in self._jobs())

    def session_of(self, job: str) -> str | None:
        """The session of a job, also of one that has ended but whose results wait; or None."""
        if job in self.queue.event_ids_to_events:
            return self.queue.event_ids_to_events[job].session_hash
        ended = self.queue.pending_event_ids_session.items()
        return next((session for session, jobs in ended if job in jobs), None)

    def wait_for_listener(self, session: str) -> bool:
        """Whether somebody waits for the job of a session that is to begin now."""
        joined = [job.enqueue_time for job in self._jobs() if job.session_hash == session]
        end = min(joined, default=0.0) + _GRACE
        while not self.is_waiting(session):
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        return True

    def is_waiting(self, session: str) -> bool:
        """Whether somebody listens for the results of a session."""
        return self._listening[session] > 0

    def gone(self, session: str) -> str | None:
        """Why nobody waits for the job of a session that runs, or None."""
        if self.is_waiting(session):
            return None
        return "the visitor stopped it" if self._open[session] else "the visitor left"

    # ------------------------------------------------------------ uploads
    @contextmanager
    def upload(self, address: str, size: int) -> Iterator[None]:
        """While ``size`` bytes come in from an address.

        Raises RefusedError where they are too many, with those that lie in the folder.
        """
        if size > MAX_UPLOAD:
            raise RefusedError(413, f"An upload may have {MAX_UPLOAD} bytes.")
        for files in self._uploads.values():
            for path in [path for path in files if not path.exists()]:
                del files[path]
        held = {each: sum(files.values()) for each, files in self._uploads.items()}
        mine = held.get(address, 0) + self._coming[address] + size
        everybodys = sum(held.values()) + sum(self._coming.values()) + size
        if mine > MAX_UPLOADS_OF_ADDRESS or everybodys > MAX_UPLOADS:
            raise RefusedError(429, "Too much was uploaded. Wait until older files are deleted.")
        self._coming[address] += size
        try:
            yield
        finally:
            self._coming[address] -= size

    def note_upload(self, address: str, path: Path) -> None:
        """Counts a file of an address until it is deleted."""
        self._uploads[address][path] = max(path.stat().st_size, _BLOCK)


def _address(job: "Event") -> str:
    client = job.request.client
    return client.host if client is not None else ""
