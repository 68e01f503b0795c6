"""Reads the batches of the next steps while the device works on this one.

What a step needs follows from the seed and its number alone, so a batch is prepared by number, in
threads (Pillow decodes and resizes without holding Python's lock). A step gives the same result
whether its batch was ready or not, and a batch that no step takes leaves no trace.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Generic, TypeVar

from var_tokenizer.common import processor_count

from var_train.listing.source_errors import SourceError
from var_train.parallel import workers

log = logging.getLogger(__name__)

T = TypeVar("T")

_MOST_BYTES = 2**30
_FIRST, _WINDOW = 3, 20  # batches: while graphs are compiled; that are measured together
_LITTLE = 0.05  # of a step


class Loader(Generic[T]):
    """Has ``prepare(n)`` ready for n = 0, 1, 2, ... in this order, in threads.

    One thread at a time uses a loader itself.
    """

    def __init__(
        self,
        source: object,
        prepare: Callable[[int], T],
        count: int,
        images: int,
    ) -> None:
        """source: what is read; nothing is prepared ahead of one without a method ``read``.
        prepare: may be called in any thread, and for numbers that are never taken; its result
        depends on its number alone. count: of numbers. images: in a batch.

        ``source.bytes_each`` is what an image takes that is prepared. Where reading takes too long,
        ``source.processor_seconds`` and ``source.remedy``, if they are there, say what would help.
        """
        self._prepare, self._count = prepare, count
        bytes_each = getattr(source, "bytes_each", 1)
        self._ahead = _batches_ahead(images, bytes_each) if hasattr(source, "read") else 0
        self._pool: ThreadPoolExecutor | None = None
        self._pending: dict[int, Future[T]] = {}
        self._speed = _Speed(source)

    def take(self, n: int) -> T:
        """What ``prepare(n)`` returns; raises what it raises, here and not earlier.

        If ``n`` does not follow the number taken last, all that was prepared is left.
        """
        if self._ahead == 0:
            return self._prepare(n)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._ahead, "read ahead")
        if n not in self._pending:
            self._leave()
        for number in range(n, max(n + 1, min(n + self._ahead + 1, self._count))):
            if number not in self._pending:
                self._pending[number] = self._pool.submit(self._prepare, number)
        begin = time.perf_counter()
        found = self._pending.pop(n).result()
        self._speed.note(begin, time.perf_counter())
        return found

    def take_with_all(self, n: int) -> T:
        """As ``take``, on every worker; where one cannot read its images, all raise its error."""
        with workers.raised_by_all(SourceError):
            found = self.take(n)
        return found

    def close(self) -> None:
        """Leaves what was prepared, and waits for the threads to end; ``take`` starts them again.

        A batch that is being read is read to its end.
        """
        self._leave()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def _leave(self) -> None:
        while self._pending:
            self._pending.popitem()[1].cancel()


def read_ahead(source: object, prepare: Callable[[int], T], count: int, images: int) -> Iterator[T]:
    """Yields ``prepare(n)`` for n = 0 to ``count`` - 1; takes what ``Loader`` takes."""
    with closing(Loader(source, prepare, count, images)) as loader:
        yield from map(loader.take, range(count))


def _batches_ahead(images: int, bytes_each: int) -> int:
    """How many batches to prepare beyond the one that is taken.

    Two, or as many as give each core two images; at most 1 GiB of them, but one at least.
    """
    wanted = max(2, math.ceil(2 * processor_count() / images))
    return max(1, min(wanted, _MOST_BYTES // (images * bytes_each)))


class _Speed:
    """Says once, where a training waits for its data, what would help."""

    def __init__(self, source: object) -> None:
        self._source = source
        self._taken = 0  # in this window
        self._began = self._waited = self._spent = 0.0
        self._said = False

    def note(self, begin: float, end: float) -> None:
        """A batch was waited for from ``begin`` to ``end``, in seconds of one clock."""
        self._taken += 1
        self._waited += end - begin
        if self._taken == _FIRST + _WINDOW and not self._said:
            self._judge(end - self._began)
            self._taken = _FIRST
        if self._taken == _FIRST:
            self._began, self._waited, self._spent = end, 0.0, self._processor_seconds()

    def _processor_seconds(self) -> float:
        return getattr(self._source, "processor_seconds", 0.0)

    def _judge(self, seconds: float) -> None:
        """Logs what would help, if much of the last ``seconds`` was spent waiting."""
        share = self._waited / seconds
        if share < _LITTLE:
            return
        self._said = True
        spent = self._processor_seconds() - self._spent
        busy, wanted = spent / seconds, spent / (seconds - self._waited)
        remedy = getattr(self._source, "remedy", "")
        if spent < self._waited * processor_count() / 2:  # decoding is not what it waited for
            log.warning(
                "data: %.0f %% of the step, and decoding takes %.1f of %d core(s); a faster disk%s "
                "would help",
                *(100 * share, busy, processor_count(), remedy and f" or {remedy}"),
            )
        else:
            log.warning(
                "data: %.0f %% of the step; %d more core(s)%s would help",
                *(100 * share, math.ceil(wanted - busy), remedy and f" or {remedy}"),
            )
