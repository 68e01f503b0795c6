"""A generation as a stream of pictures that can end early."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from var_transformer.command import log
from var_transformer.generate import Generation, OnScale


class TimeOverError(Exception):
    """A generation was stopped because it took longer than it may."""


class _LeftError(Exception):
    """A generation was stopped because nobody reads it any more."""


class Streamer:
    """Runs generations one after another, in a single thread that owns the models."""

    def __init__(self, scales: int, seconds: float) -> None:
        """scales: of the models. seconds: that a generation may take, counted from its start."""
        self._scales, self._seconds = scales, seconds
        self._thread = ThreadPoolExecutor(1, "model")

    def submit(self, work: Callable[[], object]) -> Future:
        """Has the models' thread do ``work`` when it has done what came before."""
        return self._thread.submit(work)

    def stream(self, draw: Callable[[OnScale], Generation]) -> Iterator[tuple[int, np.ndarray]]:
        """Yields k and the images (B, 3, H, W) in [0, 1] after every scale k.

        draw: calls ``generate`` or ``edit`` with the ``on_scale`` that it is given. Between two
        scales the generation stops where its time is over (TimeOverError) or where this
        iterator was closed. Raises what ``draw`` raises.
        """
        frames: queue.Queue[tuple[int, np.ndarray] | None] = queue.Queue()
        closed = threading.Event()

        def work() -> None:
            started = time.monotonic()

            def on_scale(k: int, images: np.ndarray) -> None:
                frames.put((k, images))
                done = f"stopped after scale {k + 1} of {self._scales}"
                if closed.is_set():
                    log.info("%s: the visitor left", done)
                    raise _LeftError
                if k + 1 < self._scales and time.monotonic() - started > self._seconds:
                    log.info("%s: its time is over", done)
                    raise TimeOverError(f"{done}: a generation may take {self._seconds:g} s")

            try:
                draw(on_scale)
            finally:
                frames.put(None)

        drawing = self.submit(work)
        try:
            while (frame := frames.get()) is not None:
                yield frame
            drawing.result()
        finally:
            closed.set()
