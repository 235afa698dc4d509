"""Faults on the clock: replicas that fail or are reclaimed, nodes that come and go."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from simulator.cluster.clock import TRANSFER
from simulator.cluster.elastic import FaultPlan
from simulator.cluster.life import Life, State
from simulator.cluster.lifecycle import Lifecycle
from simulator.core.random import Streams
from simulator.faults import FAULTS, Change, Faults, Loss, Surroundings


class Failures:
    """Lets one source of faults strike."""

    def __init__(self, lifecycle: Lifecycle, plan: FaultPlan, streams: Streams) -> None:
        self._lifecycle = lifecycle
        self._plan = plan
        around = Surroundings(tuple(group.name for group in lifecycle.groups), streams.stream)
        self._source: Faults = FAULTS.get(plan.policy)(around, plan.options)
        # In order of when something happens: before a node goes its replica is told.
        self._changes: Sequence[Change] = sorted(self._source.changes(), key=lambda c: c.time - c.warning_s)
        self._next = 0
        lifecycle.on_start.append(self._started)

    def begin(self) -> None:
        """Nodes that are there when the simulation starts."""
        for group in {change.group for change in self._changes}:
            self._lifecycle.places.nodes[group] = {}
        self._change(0.0)

    def _started(self, life: Life) -> None:
        loss = self._source.loss(life.group, life.slot)
        if loss is None or loss.after_s == inf:
            return
        at = max(life.started + loss.after_s - loss.warning_s, life.started)
        self._lifecycle.clock.at(at, TRANSFER, lambda _: self._strike(life, at, loss))

    def _strike(self, life: Life, now: float, loss: Loss) -> None:
        lifecycle = self._lifecycle
        if lifecycle.over or life.state in {State.DEAD, State.STOPPED}:
            return
        if loss.kind == "failure":
            lifecycle.fail(life, now, loss.down_s, self._plan.detection_s)
        else:
            lifecycle.reclaim(life, now, loss.warning_s, loss.down_s, self._plan.recovery)

    def _wait(self, until: float) -> None:
        self._lifecycle.clock.at(until, TRANSFER, lambda _: self._change(until))

    def _change(self, now: float) -> None:
        """All that happens to nodes until now; then wait for the next."""
        lifecycle = self._lifecycle
        while self._next < len(self._changes):
            change = self._changes[self._next]
            if change.time - change.warning_s > now:
                if not lifecycle.over:
                    self._wait(change.time - change.warning_s)
                return
            self._next += 1
            nodes = lifecycle.places.nodes[change.group]
            assert nodes is not None
            if change.up:
                nodes[change.node] = None
                lifecycle.room_again(change.group, now)
            else:
                life = nodes.pop(change.node)
                if life is not None:
                    lifecycle.reclaim(life, now, change.warning_s, 0.0, self._plan.recovery)
