"""Two clocks for one loop: the wall, or the CPU seconds this process has used.

On a shared machine the wall also counts what other processes did meanwhile. A single-threaded CPU engine computes or
waits for its next arrival and nothing else, so CPU seconds plus the waits (which pass at once) are the time it would
have taken alone; what neighbours do to caches and memory bandwidth stays in.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Seconds that never run back."""

    name: str

    def now(self) -> float: ...

    def wait_until(self, moment: float) -> None: ...


class WallClock:
    """``time.perf_counter``."""

    name = "wall"

    def now(self) -> float:
        return time.perf_counter()

    def wait_until(self, moment: float) -> None:
        time.sleep(max(0.0, moment - time.perf_counter()))


class CpuClock:
    """CPU seconds of this process, plus the waits, which it skips."""

    name = "cpu"

    def __init__(self) -> None:
        self._skipped = 0.0

    def now(self) -> float:
        return time.process_time() + self._skipped

    def wait_until(self, moment: float) -> None:
        self._skipped += max(0.0, moment - self.now())


CLOCKS: dict[str, type[WallClock | CpuClock]] = {"wall": WallClock, "cpu": CpuClock}
