"""Where the time goes until the first step of a run."""

import logging
import os
import time
from pathlib import Path

log = logging.getLogger(__name__)


class Startup:
    """The parts of the time to the first step of a run, which a line names."""

    def __init__(self, imports: float = 0.0) -> None:
        """imports: seconds that went before, in which Python imported what there is to import."""
        self._parts = {"imports": imports} if imports else {}
        self._last, self._is_over = time.monotonic(), False

    def end(self, part: str) -> None:
        """Names what was done since the end of the part before; nothing after the first step."""
        now = time.monotonic()
        if not self._is_over:
            self._parts[part] = self._parts.get(part, 0.0) + now - self._last
        self._last = now

    def end_first_step(self) -> None:
        """Logs all parts, the longest first; once."""
        self.end("compilation and the step itself")
        if not self._is_over:
            parts = sorted(self._parts.items(), key=lambda item: -item[1])
            named = ", ".join(f"{seconds:.1f} s {part}" for part, seconds in parts)
            log.info("first step after %.1f s: %s", sum(self._parts.values()), named)
        self._is_over = True


def process_age() -> float:
    """Seconds since this process began; 0 where the system does not say."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return 0.0
