"""Replicas that start, become ready, drain and stop.

Routers and the ``Fleet`` number places; records number lives, which are never reused: the second replica in a place is
another row of ``SimulationRecords.replicas``.

::

    start --cold start--> ready --scaled in or told to go--> draining --nobody left, or cut--> stopped
                            +------------------ fails -----> dead ----the router notices-----> stopped

Desired state, as Kubernetes keeps it: an autoscaler sets how many replicas a group should have, faults take capacity
away, and ``_reconcile`` starts and drains replicas until what there is meets both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from math import inf

from simulator.cluster.cache_events import CacheEvents
from simulator.cluster.candidates import Candidates
from simulator.cluster.clock import TRANSFER, Clock
from simulator.cluster.dispatcher import Finished
from simulator.cluster.elastic import LifePlan, Recovery
from simulator.cluster.life import Life, State
from simulator.cluster.places import Places
from simulator.cluster.plan import Group
from simulator.cluster.replica import Replica
from simulator.cluster.transfers import Turnstile
from simulator.cluster.ways import Lost, Move, Traveller, Ways
from simulator.core.errors import ScenarioError
from simulator.replica.moves import evacuate
from simulator.replica.recorder import Columns
from simulator.replica.records import ClusterEvent, ReplicaRecord, Status
from simulator.routing import Fleet
from simulator.routing.prefix_index import PrefixIndex
from simulator.scheduling.request import Request

MOST_LIVES = 32_000  # records number replicas in 16 bits
FIRST = -1_000_000  # before all rows: what becomes of replicas is settled before what becomes of requests
Build = Callable[[int, Finished], Replica]  # (place, told of every finish) -> a new replica


class Lifecycle:
    """Starts and stops the replicas of a cluster."""

    def __init__(
        self,
        clock: Clock,
        plan: LifePlan,
        groups: Sequence[Group],
        places: Places,
        *,
        build: Build,
        ways: Ways,
        candidates: Candidates,
        fleet: Fleet,
        columns: Columns,
        blocks: PrefixIndex | None,
        pass_on: Finished | None,
        endless: bool,
        turnstile: Turnstile | None = None,
    ) -> None:
        """blocks: index of the prefix caches, where the router wants one. pass_on: told of requests that have failed.
        endless: goes on when every request has ended, to a horizon. turnstile: of others who act on the engines.
        """
        self.clock, self.plan, self.groups, self.places = clock, plan, groups, places
        self._build, self.ways = build, ways
        self._candidates, self._fleet, self.columns = candidates, fleet, columns
        self._blocks = blocks
        self._pass_on, self._endless = pass_on, endless
        self._first = 0  # rows before this one have ended
        self._turnstile = turnstile or Turnstile(clock)
        self.lives: list[Life] = []
        self.events: list[ClusterEvent] = []
        self.target = [life.initial for life in plan.groups]
        self.attempts: Counter[int] = Counter()  # rows -> times that a fault lost them
        self.max_attempts = max((fault.max_attempts for fault in plan.faults), default=10)
        self.on_start: list[Callable[[Life], None]] = []  # told of every replica that starts
        self.travellers: list[Traveller] = []
        self.move: Move | None = None  # takes the requests of a replica elsewhere with their KV
        for slot in range(len(places)):
            candidates.set_open(slot, is_open=False)

    # -- for the cluster -----------------------------------------------------------------------------------

    def open(self) -> None:
        """The replicas that are there when the simulation starts are ready."""
        for group, life in enumerate(self.plan.groups):
            for _ in range(min(life.initial, self.places.capacity(group))):
                started = self._start(group, 0.0)
                if started is not None:
                    self._ready(started, 0.0)

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
        life.why = "failed"
        if life.state is State.STARTING:
            self._stop(life, now)
            return
        life.state = State.DEAD
        self.ways.shut(life)

        def strike(time: float) -> bool:
            lost = self._lose(life, time)
            life.stopped = max(time, life.replica.engine.busy_until)
            known = max(life.stopped, now + detection_s)
            self.later(life, lambda at: self._bury(life, lost, at), known)
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
            self.ways.route(request, now)

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

    # -- for those who move requests -----------------------------------------------------------------------

    def later(self, life: Life, action: Callable[[float], None], after: float) -> None:
        """Right after ``after``, in an order that does not depend on how the engines were woken."""
        self._turnstile.then(FIRST + life.slot, action, after)

    def again(self, lost: Lost, now: float) -> None:
        """These are lost where they were."""
        for life, request in lost:
            self.ways.left(life, request)
            self.gone(request, now)

    def empty_now(self, life: Life, now: float) -> None:
        """Its last request may have left."""
        if life.state is State.DRAINING:
            life.replica.engine.settle(now)
            if self._empty(life):
                self._stop(life, now)

    # -- the way of a replica ----------------------------------------------------------------------------------

    def _reconcile(self, group: int, now: float) -> None:
        """Start or drain replicas until there are as many as wanted, as far as there is room."""
        if self.over:
            return
        wanted = min(self.target[group], self.places.capacity(group))
        here = self.places.alive(group, State.STARTING, State.READY)
        for _ in range(wanted - len(here)):
            life = self._start(group, now)
            if life is None:
                return  # places are still draining
            self._warm_up(life, now)
        # Those that are not ready yet go first, then those with the least to do, then the youngest.
        excess = len(here) - wanted
        if excess > 0:
            here.sort(key=lambda life: (life.state is State.READY, self._load(life, now), -life.index))
            for life in here[:excess]:
                self._scale_in(life, now)

    def _scale_in(self, life: Life, now: float) -> None:
        life.why = "scaled in"
        scaling = self.plan.scaling
        if life.state is State.STARTING:
            self._stop(life, now)
        elif scaling is None:
            self._drain(life, now, "finish", inf)
        else:
            self._drain(life, now, scaling.drain, now + scaling.drain_timeout_s)

    def _load(self, life: Life, now: float) -> int:
        life.replica.engine.settle(now)
        state = life.replica.engine.state
        return len(state.running) + len(state.waiting)

    def _start(self, group: int, now: float) -> Life | None:
        """Take a free place; None: there is none."""
        life = self.places.take(group, now)
        if life is None:
            return None
        if len(self.lives) >= MOST_LIVES:
            raise ScenarioError(
                f"more than {MOST_LIVES:,} replicas have started in {now:,.0f} s.",
                remedy="Let them live longer: rarer faults, a slower autoscaler, or a cold start shorter than a life.",
            )
        told = self.ways.told_on(life.slot)

        def finished(request: Request, time: float) -> None:
            told(request, time)
            if life.state is State.DRAINING and self._empty(life):
                self._stop(life, time)

        life.replica = self._build(life.slot, finished)
        self.lives.append(life)
        return life

    def _warm_up(self, life: Life, now: float) -> None:
        self.say(now, "start", life.index, self.groups[life.group].name)
        plan = self.plan.groups[life.group]
        kept = plan.warm_start_s is not None and self.places.is_warm(life)
        at = now + (plan.warm_start_s if kept and plan.warm_start_s is not None else plan.cold_start_s)
        self.clock.at(at, TRANSFER, lambda _: self._ready(life, at))
        for told in self.on_start:
            told(life)

    def _ready(self, life: Life, now: float) -> None:
        if life.state is not State.STARTING or self.over:
            return  # it was stopped meanwhile
        life.state, life.ready = State.READY, now
        self.places.loaded(life)
        slot, fleet = life.slot, self._fleet
        self.ways.opened(life, now)
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
        self.ways.flush(now)

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
            self.ways.shut(life)
            lost = self._lose(life, time)
            end = max(time, life.replica.engine.busy_until)
            if life.state is State.DRAINING:  # else the last one that ended has stopped it
                life.state = State.DEAD
            self.later(life, lambda at: gone(lost, end, at), end)
            return True

        def gone(lost: Lost, end: float, at: float) -> None:
            self.again(lost + self.ways.buried(life, at), at)
            if life.state is State.DEAD:  # its place is free once nobody is counted there any more
                self._stop(life, end)

        life.replica.at_next_step(cut, now)

    def _lose(self, life: Life, time: float) -> Lost:
        """Between two steps: everybody is lost, and so is who was on the way. The list may still grow until the end of
        the step in flight."""
        engine = life.replica.engine
        lost = [(life, request) for request in evacuate(engine)]
        for traveller in self.travellers:
            traveller.strand(life, max(time, engine.busy_until), lost)
        return lost

    def _bury(self, life: Life, lost: Lost, now: float) -> None:
        """The router knows that a replica has failed."""
        self._stop(life, life.stopped)
        self.again(lost + self.ways.buried(life, now), now)
        self._reconcile(life.group, now)

    def _stop(self, life: Life, now: float) -> None:
        """Its GPUs are given back and its place is free."""
        life.state, life.stopped = State.STOPPED, now
        if self._candidates.is_open(life.slot):
            self._candidates.set_open(life.slot, is_open=False)
        if self._blocks is not None and life.caches is not None:
            life.caches.forget()
        self.places.leave(life)
        self.say(now, "stop", life.index, life.why)
        self.later(life, lambda at: self._reconcile(life.group, at), max(now, float(self.clock.now)))

    def _empty(self, life: Life) -> bool:
        state = life.replica.engine.state
        here = len(state.waiting) or state.running or state.swapped or state.kept
        return not here and not any(traveller.holds(life) for traveller in self.travellers)

    def _take_capacity(self, group: int, seconds: float, now: float) -> None:
        """Room for one replica less, for so long."""
        if self.places.nodes[group] is not None or seconds <= 0:
            return
        self.places.change(group, -1)

        def back(_: object) -> None:
            self.places.change(group, 1)
            self._reconcile(group, now + seconds)

        if seconds < inf:
            self.clock.at(now + seconds, TRANSFER, back)

    # -- for the records ---------------------------------------------------------------------------------------

    def answering(self) -> Iterator[tuple[int, Replica]]:
        """(place, replica) of those that report their queues."""
        for life in self.places.everybody(State.READY, State.DRAINING):
            yield life.slot, life.replica

    def caches(self) -> Iterator[CacheEvents]:
        """What has changed in their prefix caches."""
        for life in self.places.everybody(State.READY, State.DRAINING):
            if life.caches is not None:
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
