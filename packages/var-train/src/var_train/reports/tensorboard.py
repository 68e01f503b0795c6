"""The events that TensorBoard reads. Import this where the first is written: it takes a while."""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

_has_torch = "torch" in sys.modules
if not _has_torch:
    # tensorboardX imports PyTorch where it finds it, for tensors that nothing here has: seconds,
    # and half a gigabyte. None in sys.modules says that there is no such module.
    sys.modules["torch"] = None  # type: ignore[assignment]
try:
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.summary import image, scalar, text
finally:
    if not _has_torch:
        del sys.modules["torch"]

_FLUSH = 10.0  # seconds between two writes of what TensorBoard reads


class Board:
    """The events of a stage for TensorBoard.

    They are written where they are added. tensorboardX's own SummaryWriter leaves that to a thread:
    it dies of a full disk, and the run would wait for it forever.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        """first_step: from there on, TensorBoard forgets what earlier processes recorded."""
        folder.mkdir(parents=True, exist_ok=True)
        # TensorBoard reads the files in the order of their names, which else begin with the time
        number = sum(1 for _ in folder.iterdir())
        self._events = EventsWriter(str(folder / f"events.process-{number:06d}"))
        self._flushed = time.monotonic()
        self._write(first_step, session_log=SessionLog(status=SessionLog.START))

    def add(
        self, name: str, value: float | str | list[float] | list[int] | np.ndarray, step: int
    ) -> None:
        """Adds a picture, uint8 (Y, X, 3), a text, a number, or numbers as NAME/0, NAME/1, ..."""
        if isinstance(value, np.ndarray):
            self._write(step, summary=image(name, value, dataformats="HWC"))
        elif isinstance(value, str):
            self._write(step, summary=text(name, value))
        elif isinstance(value, list):
            for k, number in enumerate(value):
                self._write(step, summary=scalar(f"{name}/{k}", number))
        else:
            self._write(step, summary=scalar(name, value))
        if time.monotonic() > self._flushed + _FLUSH:
            self.flush()

    def flush(self) -> None:
        """Lets TensorBoard read what was added."""
        self._flushed = time.monotonic()
        self._events.flush()

    def close(self) -> None:
        self._events.close()

    def _write(self, step: int, **content: Any) -> None:  # noqa: ANN401
        self._events.write_event(Event(wall_time=time.time(), step=step, **content))
