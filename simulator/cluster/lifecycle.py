"""Replicas that start, become ready, drain and stop.

A *place* (slot) is room for one replica of a group: its GPUs. Routers and the ``Fleet`` number places; records number
lives, which are never reused: the second replica in a place is another row of ``SimulationRecords.replicas``.

::

    start --cold start--> ready --scaled in or told to go--> draining --nobody left, or cut--> stopped
                            +------------------ fails -----> dead ----the router notices-----> stopped

Desired state, as Kubernetes keeps it: an autoscaler sets how many replicas a group should have, faults take capacity
away, and ``_reconcile`` starts and drains replicas until what there is meets both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from enum import Enum, auto
from math import inf
from typing import Any

from simulator.cluster.cache_events import CacheEvents
from simulator.cluster.candidates import Candidates
from simulator.cluster.clock import TRANSFER, Clock
from simulator.cluster.dispatcher import Dispatcher
from simulator.cluster.elastic import LifePlan, Recovery
from simulator.cluster.plan import Group
from simulator.cluster.replica import Replica
from simulator.cluster.transfers import Turnstile
from simulator.core.errors import ScenarioError
from simulator.replica.moves import evacuate
from simulator.replica.recorder import Columns
from simulator.replica.records import ClusterEvent, ReplicaRecord, Status, TransferRecords
from simulator.routing import Fleet
from simulator.routing.prefix_index import PrefixIndex
from simulator.scheduling.request import Request

MOST_LIVES = 32_000  # records number replicas in 16 bits
Finished = Callable[[Request, float], None]
Build = Callable[[int, Finished], Replica]  # (place, told of every finish) -> a new replica
Move = Callable[["Life", float], bool]  # (replica that drains, time) -> done


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
        "coming",
        "deadline",
        "group",
        "node",
        "ready",
        "replica",
        "sending",
        "slot",
        "started",
        "state",
        "stopped",
        "why",
    )

    def __init__(self, group: int, slot: int, started: float) -> None:
        self.group = group
        self.slot = slot
        self.started = started
        self.ready = inf
        self.stopped = inf
        self.deadline = inf  # s, when it is cut if it still drains
        self.state = State.STARTING
        self.why = ""
        self.node = ""
        self.replica: Replica
        self.caches: CacheEvents | None = None
        self.coming: list[Any] = []  # requests on their way to it with their KV
        self.sending = False  # KV of its requests is on its way elsewhere

    @property
    def index(self) -> int:
        return self.replica.index


class Grave:
    """In the place of a replica that has failed while the router does not know: what is sent there is lost."""

    def __init__(self) -> None:
        self.received: list[Request] = []

    def receive(self, request: Request, now: float) -> None:
        del now
        self.received.append(request)


def _nothing() -> None:
    return None


def _nobody(life: Life) -> list[Request]:
    del life
    return []


class Lifecycle:
    """Starts and stops the replicas of a cluster."""

    def __init__(
        self,
        clock: Clock,
        plan: LifePlan,
        groups: Sequence[Group],
        member: Sequence[int],
        *,
        build: Build,
        dispatcher: Dispatcher,
        candidates: Candidates,
        fleet: Fleet,
        columns: Columns,
        blocks: PrefixIndex | None,
        pass_on: Finished | None,
        endless: bool,
    ) -> None:
        """member: group of each place. blocks: index of the prefix caches, where the router wants one.
        pass_on: told of requests that have failed. endless: goes on when every request has ended, to a horizon.
        """
        self.clock, self.plan, self.groups = clock, plan, groups
        self._member = member
        self._build = build
        self.dispatcher, self._candidates, self._fleet, self.columns = dispatcher, candidates, fleet, columns
        self._blocks = blocks
        self._pass_on, self._endless = pass_on, endless
        self._first = 0  # rows before this one have ended
        self._turnstile = Turnstile(clock)
        self.lives: list[Life] = []
        self.events: list[ClusterEvent] = []
        self.target = [life.initial for life in plan.groups]
        self.nodes: list[dict[str, Life | None] | None] = [None] * len(groups)  # those of a group that has a plan
        self._kept: set[int | str] = set()  # places, or nodes of a plan, that have loaded the weights
        self._down = [0] * len(groups)  # places that cannot be taken
        self._here: list[Life | None] = [None] * len(member)
        self.attempts: Counter[int] = Counter()  # rows -> times that a fault lost them
        self.max_attempts = max((fault.max_attempts for fault in plan.faults), default=10)
        self.on_start: list[Callable[[Life], None]] = []  # told of every replica that starts
        self.move: Move | None = None  # takes the requests of a replica elsewhere with their KV
        self.transfers: Callable[[], TransferRecords | None] = _nothing
        self.call_back: Callable[[Life], list[Request]] = _nobody  # those that are on their way to one that goes
        for slot in range(len(member)):
            candidates.set_open(slot, is_open=False)

    # -- for the cluster -----------------------------------------------------------------------------------

    def open(self) -> None:
        """The replicas that are there when the simulation starts are ready."""
        for group, life in enumerate(self.plan.groups):
            for _ in range(min(life.initial, self.capacity(group))):
                started = self._start(group, 0.0)
                if started is not None:
                    self._ready(started, 0.0)

    def alive(self, group: int, *states: State) -> list[Life]:
        """Replicas of a group in these states, by place."""
        return [life for life in self._here if life is not None and life.group == group and life.state in states]

    def capacity(self, group: int) -> int:
        """Replicas that there is room for now."""
        nodes = self.nodes[group]
        room = self.plan.groups[group].max_replicas - self._down[group]
        return room if nodes is None else min(room, len(nodes))

    def set_target(self, group: int, replicas: int, now: float) -> None:
        """So many replicas are wanted from now on."""
        limits = self.plan.groups[group]
        replicas = min(max(replicas, limits.min_replicas), limits.max_replicas)
        if replicas != self.target[group]:
            before, self.target[group] = self.target[group], replicas
            kind = "scale-out" if replicas > before else "scale-in"
            self.say(now, kind, -1, f"{self.groups[group].name}: {before} to {replicas} replicas")
        self._reconcile(group, now)

    def fail(self, life: Life, now: float, down_s: float, detection_s: float) -> None:
        """A replica fails after the step in flight; after ``detection_s`` the router knows, and what it had is lost."""
        if life.state in {State.DEAD, State.STOPPED}:
            return
        self._take_capacity(life.group, down_s, now)
        self.say(now, "failure", life.index, f"{self.groups[life.group].name}: back after {down_s:.0f} s")
        starting = life.state is State.STARTING
        life.why = "failed"
        if starting:
            self._stop(life, now)
            return
        life.state = State.DEAD
        grave = Grave()
        if self._candidates.is_open(life.slot):
            self.dispatcher.replicas[life.slot] = grave

        def strike(time: float) -> bool:
            lost = evacuate(life.replica.engine) + self.call_back(life)
            life.stopped = max(time, life.replica.engine.busy_until)
            known = max(life.stopped, now + detection_s)
            self._turnstile.then(life.slot, lambda at: self._bury(life, lost + grave.received, at), known)
            return True

        life.replica.at_next_step(strike, now)

    def reclaim(self, life: Life, now: float, warning_s: float, down_s: float, recovery: Recovery) -> None:
        """A replica is told that it ends in ``warning_s``."""
        if life.state in {State.DEAD, State.STOPPED}:
            return
        self._take_capacity(life.group, warning_s + down_s, now)
        self.say(now, "reclaim", life.index, f"{self.groups[life.group].name}: ends in {warning_s:.0f} s")
        life.why = "reclaimed"
        if life.state is State.STARTING:
            self._stop(life, now)
        else:
            self._drain(life, now, recovery, now + warning_s)
        self._reconcile(life.group, now)

    def room_again(self, group: int, now: float) -> None:
        """A node has come."""
        if now > 0:
            self._reconcile(group, now)

    def gone(self, request: Request, now: float) -> None:
        """A fault has lost a request: it is computed again elsewhere, or has failed."""
        row = request.row
        self.attempts[row] += 1
        if self.attempts[row] >= self.max_attempts:
            self.columns.status[row] = Status.FAILED
            if self._pass_on is not None:
                self._pass_on(request, now)
        else:
            self.dispatcher.route(request, now)

    def say(self, now: float, kind: str, replica: int, text: str = "") -> None:
        self.events.append(ClusterEvent(now, kind, replica, text))

    @property
    def over(self) -> bool:
        """Every request has ended, and nobody waits for a horizon: nothing need happen any more."""
        if self._endless:
            return False
        status, first = self.columns.status, self._first
        while first < len(status) and status[first] != Status.IN_FLIGHT:
            first += 1
        self._first = first
        return first == len(status)

    # -- the way of a replica ----------------------------------------------------------------------------------

    def _reconcile(self, group: int, now: float) -> None:
        """Start or drain replicas until there are as many as wanted, as far as there is room."""
        if self.over:
            return
        wanted = min(self.target[group], self.capacity(group))
        here = self.alive(group, State.STARTING, State.READY)
        for _ in range(wanted - len(here)):
            life = self._start(group, now)
            if life is None:
                return  # places are still draining
            self._warm_up(life, now)
        # Those that are not ready yet go first, then those with the least to do, then the youngest.
        excess = len(here) - wanted
        if excess > 0:
            here.sort(key=lambda life: (life.state is State.READY, self._load(life, now), -life.index))
            scaling = self.plan.scaling
            for life in here[:excess]:
                life.why = "scaled in"
                if life.state is State.STARTING:
                    self._stop(life, now)
                else:
                    timeout = inf if scaling is None else scaling.drain_timeout_s
                    self._drain(life, now, "finish" if scaling is None else scaling.drain, now + timeout)

    def _load(self, life: Life, now: float) -> int:
        life.replica.engine.settle(now)
        state = life.replica.engine.state
        return len(state.running) + len(state.waiting)

    def _start(self, group: int, now: float) -> Life | None:
        """Take a free place; None: there is none."""
        slots = [s for s, g in enumerate(self._member) if g == group and self._here[s] is None]
        nodes = self.nodes[group]
        names = [""] if nodes is None else [name for name, life in nodes.items() if life is None]
        if not slots or not names:
            return None
        if len(self.lives) >= MOST_LIVES:
            raise ScenarioError(
                f"more than {MOST_LIVES:,} replicas have started in {now:,.0f} s.",
                remedy="Let them live longer: rarer faults, a slower autoscaler, or a cold start shorter than a life.",
            )
        slot = next((s for s in slots if s in self._kept), slots[0])  # where the weights are, if anywhere
        node = next((name for name in names if name in self._kept), names[0])
        life = Life(group, slot, now)

        told = self.dispatcher.told_on(slot)

        def finished(request: Request, time: float) -> None:
            told(request, time)
            if life.state is State.DRAINING and self._empty(life):
                self._stop(life, time)

        life.replica = self._build(slot, finished)
        life.node = node
        if nodes is not None:
            nodes[node] = life
        self._here[slot] = life
        self.lives.append(life)
        return life

    def _warm_up(self, life: Life, now: float) -> None:
        self.say(now, "start", life.index, self.groups[life.group].name)
        plan = self.plan.groups[life.group]
        kept = plan.warm_start_s is not None and (life.node or life.slot) in self._kept
        at = now + (plan.warm_start_s if kept and plan.warm_start_s is not None else plan.cold_start_s)
        self.clock.at(at, TRANSFER, lambda _: self._ready(life, at))
        for told in self.on_start:
            told(life)

    def _ready(self, life: Life, now: float) -> None:
        if life.state is not State.STARTING or self.over:
            return  # it was stopped meanwhile
        life.state, life.ready = State.READY, now
        self._kept.add(life.node or life.slot)
        slot, fleet = life.slot, self._fleet
        self.dispatcher.replicas[slot] = life.replica
        fleet.waiting[slot] = fleet.running[slot] = 0
        fleet.free_blocks[slot] = fleet.num_blocks[slot]
        if self._blocks is not None:
            life.caches = CacheEvents(life.replica.engine.state.pool, slot, self._blocks)
        self._candidates.set_open(slot, is_open=True)
        if now > 0:
            self.say(
                now, "ready", life.index, f"{self.groups[life.group].name}: {now - life.started:.1f} s after its start"
            )
        else:
            for told in self.on_start:
                told(life)
        self.dispatcher.flush(now)

    def _drain(self, life: Life, now: float, how: Recovery, deadline: float) -> None:
        """No new requests; those it has are finished, computed again or moved, at the latest by ``deadline``."""
        if life.state is State.READY:
            life.state = State.DRAINING
            self._candidates.set_open(life.slot, is_open=False)
            self.say(now, "drain", life.index, life.why)
        life.deadline = min(life.deadline, deadline)
        if life.deadline < inf:
            at = life.deadline
            self.clock.at(at, TRANSFER, lambda _: self._cut(life, at))
        life.replica.engine.settle(now)
        if self._empty(life):
            self._stop(life, now)
        elif how == "recompute":
            self._cut(life, now)
        elif how == "migrate" and self.move is not None:
            move = self.move
            life.replica.at_next_step(lambda time: move(life, time), now)

    def _cut(self, life: Life, now: float) -> None:
        """Whoever is still there is computed again elsewhere."""
        if life.state is not State.DRAINING:
            return

        def cut(time: float) -> bool:
            if life.state is not State.DRAINING:
                return True
            lost = evacuate(life.replica.engine) + self.call_back(life)
            end = max(time, life.replica.engine.busy_until)
            if life.state is State.DRAINING:  # else the last one that ended has stopped it
                self._stop(life, end)
            self._turnstile.then(life.slot, lambda at: self.again(life, lost, at), end)
            return True

        life.replica.at_next_step(cut, now)

    def empty_now(self, life: Life, now: float) -> None:
        """Its last request may have left."""
        if life.state is State.DRAINING:
            life.replica.engine.settle(now)
            if self._empty(life):
                self._stop(life, now)

    def later(self, life: Life, action: Callable[[float], None], after: float) -> None:
        """Right after ``after``, in an order that does not depend on how the engines were woken."""
        self._turnstile.then(life.slot, action, after)

    def at(self, slot: int) -> Life | None:
        """The replica in a place."""
        return self._here[slot]

    def again(self, life: Life, lost: Sequence[Request], now: float) -> None:
        for request in lost:
            self.dispatcher.left(life.slot, request)
            self.gone(request, now)

    def _bury(self, life: Life, lost: Sequence[Request], now: float) -> None:
        """The router knows that a replica has failed."""
        self._stop(life, life.stopped)
        self.again(life, lost, now)
        self._reconcile(life.group, now)

    def _stop(self, life: Life, now: float) -> None:
        """Its GPUs are given back and its place is free."""
        life.state, life.stopped = State.STOPPED, now
        slot = life.slot
        if self._candidates.is_open(slot):
            self._candidates.set_open(slot, is_open=False)
        self._here[slot] = None
        if self._blocks is not None and life.caches is not None:
            life.caches.forget()
        nodes = self.nodes[life.group]
        if nodes is not None and nodes.get(life.node) is life:
            nodes[life.node] = None
        if life.why != "scaled in":
            self._kept.discard(life.node or slot)  # what comes back is another node
        self.say(now, "stop", life.index, life.why)
        self._turnstile.then(life.slot, lambda at: self._reconcile(life.group, at), max(now, float(self.clock.now)))

    def _empty(self, life: Life) -> bool:
        state = life.replica.engine.state
        return not (life.coming or life.sending or len(state.waiting) or state.running or state.swapped or state.kept)

    def _take_capacity(self, group: int, seconds: float, now: float) -> None:
        """Room for one replica less, for so long."""
        if self.nodes[group] is not None or seconds <= 0:
            return
        self._down[group] += 1

        def back(_: object) -> None:
            self._down[group] -= 1
            self._reconcile(group, now + seconds)

        if seconds < inf:
            self.clock.at(now + seconds, TRANSFER, back)

    # -- for the records ---------------------------------------------------------------------------------------

    def answering(self) -> Iterator[tuple[int, Replica]]:
        """(place, replica) of those that report their queues."""
        for life in self._here:
            if life is not None and life.state in {State.READY, State.DRAINING}:
                yield life.slot, life.replica

    def caches(self) -> Iterator[CacheEvents]:
        """What has changed in their prefix caches."""
        for life in self._here:
            if life is not None and life.caches is not None and life.state in {State.READY, State.DRAINING}:
                yield life.caches

    def records(self) -> tuple[ReplicaRecord, ...]:
        return tuple(
            ReplicaRecord(
                self.groups[life.group].name,
                self.groups[life.group].gpu,
                self.groups[life.group].num_gpus,
                life.started,
                life.ready,
                life.stopped,
                life.why,
            )
            for life in self.lives
        )
