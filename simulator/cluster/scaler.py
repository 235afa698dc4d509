"""An autoscaler on the clock: shows it the cluster every interval, and does what it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulator.cluster.candidates import Candidates
from simulator.cluster.clock import TRANSFER
from simulator.cluster.dispatcher import Dispatcher
from simulator.cluster.elastic import ScalingPlan
from simulator.cluster.life import State
from simulator.cluster.lifecycle import Lifecycle
from simulator.cluster.migration import freeness
from simulator.core.errors import PolicyError
from simulator.scaling import SCALERS, GroupFacts, GroupView, Scaler, Surroundings, View
from simulator.scheduling.request import Request


@dataclass(frozen=True, slots=True)
class Door:
    """Where requests wait for a replica: who could serve them, and their router."""

    candidates: Candidates
    dispatcher: Dispatcher


class Autoscaler:
    """Asks a scaling policy every ``interval_s``."""

    def __init__(self, lifecycle: Lifecycle, plan: ScalingPlan, doors: Sequence[Door]) -> None:
        self._lifecycle = lifecycle
        self._plan = plan
        self._doors = doors
        groups = lifecycle.groups
        facts = tuple(
            GroupFacts(g.name, n.min_replicas, n.max_replicas, n.initial, n.cold_start_s, g.args.max_num_seqs)
            for g, n in zip(groups, lifecycle.plan.groups, strict=True)
        )
        self._policy: Scaler = SCALERS.get(plan.policy)(Surroundings(facts, plan.interval_s), plan.options)
        self._arrivals = [0] * len(groups)
        self._ticks = 0

    def begin(self) -> None:
        self._ticks += 1
        at = self._ticks * self._plan.interval_s
        self._lifecycle.clock.at(at, TRANSFER, lambda _: self._tick(at))

    def saw(self, request: Request) -> None:
        """A request has arrived."""
        for group in {_first(door.candidates.kind(request.row)) for door in self._doors}:
            self._arrivals[group] += 1

    def _tick(self, now: float) -> None:
        lifecycle = self._lifecycle
        if lifecycle.over:
            return
        desired = list(self._policy.desired(self._view(now)))
        if len(desired) != len(lifecycle.groups) or not all(isinstance(n, int) and n >= 0 for n in desired):
            names = ", ".join(group.name for group in lifecycle.groups)
            raise PolicyError(
                f"autoscaler {self._plan.policy!r} wants {desired} replicas.",
                remedy=f"It must answer with one whole number, 0 or more, per group ({names}).",
            )
        for group, wanted in enumerate(desired):
            lifecycle.set_target(group, wanted, now)
        self.begin()

    def _view(self, now: float) -> View:
        at_the_door = [0] * len(self._arrivals)
        for door in self._doors:
            for kind, waiting in door.dispatcher.door.lines().items():
                at_the_door[_first(kind)] += waiting
        views = tuple(self._group_view(group, at_the_door[group], now) for group in range(len(at_the_door)))
        self._arrivals = [0] * len(self._arrivals)
        return View(now, views)

    def _group_view(self, group: int, waiting: int, now: float) -> GroupView:
        lifecycle = self._lifecycle
        ready = lifecycle.places.alive(group, State.READY)
        running, usage, free = 0, 0.0, 0.0
        for life in ready:
            engine = life.replica.engine
            engine.settle(now)
            waiting += len(engine.state.waiting) + lifecycle.ways.waiting(life)
            running += len(engine.state.running)
            usage += 1.0 - engine.state.pool.free / engine.state.pool.num_blocks
            free += freeness(engine.state)
        return GroupView(
            target=lifecycle.target[group],
            ready=len(ready),
            starting=len(lifecycle.places.alive(group, State.STARTING)),
            draining=len(lifecycle.places.alive(group, State.DRAINING)),
            waiting=waiting,
            running=running,
            kv_usage=usage / len(ready) if ready else 0.0,
            freeness=free / len(ready) if ready else 0.0,
            arrivals=self._arrivals[group],
        )


def _first(kind: int) -> int:
    """The first group that could serve a kind of request: it counts what waits for any."""
    return (kind & -kind).bit_length() - 1
