"""SimPy's event loop with events at absolute times and a documented order among events of one instant."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappush

from simpy import Environment
from simpy.events import Event

# Events at one instant run in this order, then in the order they were scheduled. Finishes need no rank of their own:
# whoever reads a replica at an instant settles it first.
TRANSFER, ARRIVAL, PLAN = 1, 2, 3

Callback = Callable[[Event], None]


class Alarm(Event):
    """An event that is triggered from the start: the clock calls ``callback(alarm)`` when its time comes."""

    def __init__(self, callback: Callback) -> None:
        # What simpy's loop touches of an event, and no more: the constructor is on the hot path.
        self.callbacks = [callback]
        self._ok = True


class Clock(Environment):
    """A SimPy environment. Engines compute absolute times; ``now + delay`` would round them differently."""

    def at(self, time: float, rank: int, callback: Callback) -> Event:
        """Run ``callback(event)`` at ``time``; a stale event is recognised by identity and ignored by its owner."""
        event = Alarm(callback)
        heappush(self._queue, (time, rank, next(self._eid), event))  # type: ignore[misc]  # rank is a plain int, simpy's a NewType
        return event

    def pass_to(self, time: float) -> bool:
        """Be at ``time`` at once if nothing else is due by then; it counts as an event."""
        queue = self._queue
        if queue and queue[0][0] <= time:
            return False
        self._now = time
        next(self._eid)
        return True

    @property
    def num_events(self) -> int:
        """Events scheduled so far."""
        return next(self._eid)  # consumes one number: call it once, at the end
