"""Runs generations in one thread, as streams of pictures that can end early."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from var_transformer.generation.generate import Generation, OnScale

log = logging.getLogger("var_transformer")


class TimeOverError(Exception):
    """A generation was stopped because it took too long."""


class _EndedError(Exception):
    """A generation was stopped because no one waits for it."""


class Streamer:
    """Runs generations one after another, in a single thread that owns the models."""

    def __init__(self, scales: int, seconds: float) -> None:
        """scales: how many the models have. seconds: how long a generation may take."""
        self._scales, self._seconds = scales, seconds
        self._thread = ThreadPoolExecutor(1, "model")
        self._closed = threading.Event()

    def submit(self, work: Callable[[], object]) -> Future:
        """Queues ``work`` for the models' thread."""
        return self._thread.submit(work)

    def close(self) -> None:
        """Ends the running generation before its next scale, and starts no other."""
        self._closed.set()
        self._thread.shutdown(wait=False, cancel_futures=True)

    def stream(
        self, draw: Callable[[OnScale], Generation], gone: Callable[[], str | None] = lambda: None
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yields k and the images (B, 3, H, W) in [0, 1] after every scale k.

        draw: calls ``generate`` or ``edit`` with the ``on_scale`` that it gets. gone: why no one
        waits for the generation any more, or None. Between two scales the generation stops when
        its time is over (TimeOverError) or, without an error, when no one waits for it or this
        iterator or the streamer was closed. Raises what ``draw`` raises.
        """
        frames: queue.Queue[tuple[int, np.ndarray] | None] = queue.Queue()
        stopped = threading.Event()

        def work() -> None:
            started = time.monotonic()

            def on_scale(k: int, images: np.ndarray) -> None:
                frames.put((k, images))
                done = f"stopped after scale {k + 1} of {self._scales}"
                why = "the server ends" if self._closed.is_set() else gone()
                if why is None and stopped.is_set():
                    why = "the visitor stopped it"
                if why is not None:
                    log.info("%s: %s", done, why)
                    raise _EndedError
                if k + 1 < self._scales and time.monotonic() - started > self._seconds:
                    log.info("%s: its time is over", done)
                    raise TimeOverError(f"{done}: a generation may take {self._seconds:g} s")

            try:
                draw(on_scale)
            finally:
                frames.put(None)

        if self._closed.is_set():
            return
        try:
            drawing = self.submit(work)
        except RuntimeError:  # closed since
            return
        drawing.add_done_callback(lambda _: frames.put(None))  # it may never have begun
        try:
            while (frame := frames.get()) is not None:
                yield frame
            if not drawing.cancelled():
                drawing.result()
        except _EndedError:
            pass
        finally:
            stopped.set()
