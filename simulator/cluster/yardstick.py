"""How fast this machine runs SimPy itself: the unit in which speeds of different machines compare."""

from __future__ import annotations

import time
from collections.abc import Generator

from simpy import Environment
from simpy.events import Event


def timeouts_per_cpu_s(count: int = 100_000) -> float:
    """Timeouts per CPU-second of one SimPy process that does nothing else."""
    clock = Environment()

    def tick() -> Generator[Event, object, None]:
        for _ in range(count):
            yield clock.timeout(1.0)

    clock.process(tick())
    begin = time.process_time()
    clock.run()
    return count / (time.process_time() - begin)
