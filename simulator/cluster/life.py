"""One replica from start to stop."""

from __future__ import annotations

from enum import Enum, auto
from math import inf

from simulator.cluster.cache_events import CacheEvents
from simulator.cluster.replica import Replica


class State(Enum):
    STARTING = auto()
    READY = auto()
    DRAINING = auto()
    DEAD = auto()
    STOPPED = auto()


class Life:
    """One replica from start to stop."""

    __slots__ = (
        "caches",
        "deadline",
        "group",
        "node",
        "ready",
        "replica",
        "slot",
        "started",
        "state",
        "stopped",
        "why",
    )

    def __init__(self, group: int, slot: int, started: float, node: str = "") -> None:
        self.group = group
        self.slot = slot
        self.started = started
        self.ready = inf
        self.stopped = inf
        self.deadline = inf  # s, when it is cut if it still drains
        self.state = State.STARTING
        self.why = ""
        self.node = node
        self.replica: Replica
        self.caches: CacheEvents | None = None

    @property
    def index(self) -> int:
        return self.replica.index
