"""What controllers see of the cluster: one look at every group, and what has come since the last one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from simulator.cluster.candidates import Candidates
from simulator.cluster.dispatcher import Dispatcher
from simulator.cluster.life import State
from simulator.cluster.lifecycle import Lifecycle
from simulator.cluster.migration import freeness
from simulator.cluster.plan import Group
from simulator.cluster.replica import Replica
from simulator.cost.power import PowerProfile
from simulator.scaling import GroupFacts, GroupView, View
from simulator.scheduling.request import Request


@dataclass(frozen=True, slots=True)
class Door:
    """Where requests wait for a replica: who could serve them, and their router."""

    candidates: Candidates
    dispatcher: Dispatcher


class Crew(Protocol):
    """The replicas of a cluster, by group."""

    def ready(self, group: int) -> Sequence[Replica]: ...

    def all(self, group: int) -> Sequence[Replica]:
        """Those that draw power, too."""
        ...

    def numbers(self, group: int) -> tuple[int, int, int]:
        """Asked for, starting, draining."""
        ...

    def queued(self, replica: Replica) -> int:
        """Requests that wait to enter its engine, those in the engine's own queue left out."""
        ...


class Fixed:
    """They are there from the start to the end."""

    def __init__(self, replicas: Sequence[Replica], member: Sequence[int], groups: int) -> None:
        """member: group of each."""
        self._of = [[r for r, g in zip(replicas, member, strict=True) if g == group] for group in range(groups)]

    def ready(self, group: int) -> Sequence[Replica]:
        return self._of[group]

    all = ready

    def numbers(self, group: int) -> tuple[int, int, int]:
        return len(self._of[group]), 0, 0

    def queued(self, replica: Replica) -> int:
        del replica
        return 0


class Mortal:
    """They come and go."""

    def __init__(self, lifecycle: Lifecycle) -> None:
        self._lifecycle = lifecycle

    def ready(self, group: int) -> Sequence[Replica]:
        return [life.replica for life in self._lifecycle.places.alive(group, State.READY)]

    def all(self, group: int) -> Sequence[Replica]:
        states = State.STARTING, State.READY, State.DRAINING, State.DEAD
        return [life.replica for life in self._lifecycle.places.alive(group, *states)]

    def numbers(self, group: int) -> tuple[int, int, int]:
        alive = self._lifecycle.places.alive
        return self._lifecycle.target[group], len(alive(group, State.STARTING)), len(alive(group, State.DRAINING))

    def queued(self, replica: Replica) -> int:
        lifecycle = self._lifecycle
        return lifecycle.ways.waiting(lifecycle.lives[replica.index])


class Watch:
    """Counts what comes between two looks."""

    def __init__(self, crew: Crew, doors: Sequence[Door], groups: int) -> None:
        self._crew, self._doors = crew, doors
        self._arrivals, self._prompt_tokens = [0] * groups, [0] * groups
        self.clocks = [1.0] * groups  # shares of the maximum, as last ordered

    def saw(self, request: Request) -> None:
        """A request has arrived."""
        for group in {_first(door.candidates.kind(request.row)) for door in self._doors}:
            self._arrivals[group] += 1
            self._prompt_tokens[group] += request.prompt_tokens

    def look(self, now: float, watts: Sequence[float] = ()) -> View:
        """watts: of each group, where they are known."""
        groups = range(len(self._arrivals))
        at_the_door = [0] * len(groups)
        for door in self._doors:
            for kind, waiting in door.dispatcher.door.lines().items():
                at_the_door[_first(kind)] += waiting
        view = View(now, tuple(self._group(g, at_the_door[g], now, watts[g] if watts else 0.0) for g in groups))
        self._arrivals, self._prompt_tokens = [0] * len(groups), [0] * len(groups)
        return view

    def _group(self, group: int, waiting: int, now: float, watts: float) -> GroupView:
        ready = self._crew.ready(group)
        running, context, usage, free = 0, 0, 0.0, 0.0
        for replica in ready:
            replica.engine.settle(now)
            state = replica.engine.state
            waiting += len(state.waiting) + self._crew.queued(replica)
            running += len(state.running)
            context += sum(lane.computed_sum for lane in state.lanes)
            usage += 1.0 - state.pool.free / state.pool.num_blocks
            free += freeness(state) * max(len(state.running), 1)
        target, starting, draining = self._crew.numbers(group)
        return GroupView(
            target=target,
            ready=len(ready),
            starting=starting,
            draining=draining,
            waiting=waiting,
            running=running,
            kv_usage=usage / len(ready) if ready else 0.0,
            arrivals=self._arrivals[group],
            freeness=free / max(running, 1),
            prompt_tokens=self._prompt_tokens[group],
            context_tokens=context,
            clock=self.clocks[group],
            watts=watts,
        )


def facts(group: Group, least: int, most: int, initial: int, cold_start_s: float) -> GroupFacts:
    """What controllers know of a group beforehand."""
    profile = None
    if group.power is not None:
        profile = PowerProfile(group.cost, group.power, group.num_gpus, group.args.max_num_seqs)
    return GroupFacts(group.name, least, most, initial, cold_start_s, group.args.max_num_seqs, profile)


def _first(kind: int) -> int:
    """The first group that could serve a kind of request: it counts what waits for any."""
    return (kind & -kind).bit_length() - 1
