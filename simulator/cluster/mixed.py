"""Replicas of one role that help out with the other (Splitwise's mixed pool, decided per request)."""

from __future__ import annotations

from collections.abc import Iterable

from simulator.cluster.handover import Port
from simulator.cluster.plan import MixedPlan
from simulator.cluster.prediction import queued_tokens
from simulator.replica.records import ClusterEvent


class Mixed:
    """Decides who helps, and remembers who does."""

    def __init__(self, plan: MixedPlan) -> None:
        self._plan = plan
        self._helpers: dict[int, Port] = {}  # row -> who serves it against its role
        self.events: list[ClusterEvent] = []

    def decodes_too(self, ports: Iterable[Port]) -> bool:
        """Whether so many requests wait for blocks of every decode replica that prefill replicas decode."""
        bound = self._plan.waiting_requests
        return bound is not None and min((len(port.waiting) for port in ports), default=0) >= bound

    def too_many_prompts(self, port: Port, others: Iterable[Port], now: float) -> bool:
        """Whether a prefill replica has so much to compute that one of the decode replicas, ``others``, does better."""
        bound = self._plan.prompt_tokens
        if bound is None or port.pending < bound:
            return False
        return any(_queued(other, now) < bound for other in others)

    def helps(self, port: Port, row: int, what: str, now: float) -> None:
        """A replica does the other role's work for a request."""
        self._helpers[row] = port
        port.helped += 1
        if port.helped == 1:
            self._say(port, what, now)

    def ended(self, row: int, now: float) -> bool:
        """A request has left. True: it was one of those."""
        port = self._helpers.pop(row, None)
        if port is None:
            return False
        port.helped -= 1
        if not port.helped:
            self._say(port, "its own role alone", now)
        return True

    def _say(self, port: Port, what: str, now: float) -> None:
        replica = port.replica
        self.events.append(ClusterEvent(now, "role", replica.index, f"{replica.group.name}: {what}"))


def _queued(port: Port, now: float) -> int:
    """Prompt tokens that a replica has still to compute."""
    port.replica.engine.settle(now)
    return queued_tokens(port.replica.engine.state)
