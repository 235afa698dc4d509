"""Live migration: requests move between replicas while they decode, to even out memory.

Llumnix (Sun et al., OSDI 2024, arXiv:2406.03243). Its measure is *freeness*, how many more tokens every running request
of a replica can make before the memory is full: (blocks free - blocks that the head of the queue waits for) / running
requests. Every interval the least free replica below one bound is paired with the freest above another, and one
request of it, the shortest, moves. Its KV is copied in stages while it goes on decoding: each stage sends what was made
during the one before. When little is left the request stops, and only that last stage is felt. The target reserves
blocks before each stage; when it has none, or the request ends or is preempted, the migration is called off.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from math import inf

from simulator.cluster.clock import TRANSFER, Clock
from simulator.cluster.dispatcher import Dispatcher
from simulator.cluster.life import Life, State
from simulator.cluster.lifecycle import Lifecycle
from simulator.cluster.plan import ClusterPlan
from simulator.cluster.replica import Replica
from simulator.cluster.transfers import Moved, Transfer, Transfers, Turnstile
from simulator.cluster.ways import Lost
from simulator.core.errors import ScenarioError
from simulator.replica.moves import elsewhere, land, take_out
from simulator.replica.recorder import Columns
from simulator.replica.records import ClusterEvent, Status
from simulator.scheduling import EngineState
from simulator.scheduling.request import Request


class Moving:
    """Two replicas that are a pair, and the request on its way from one to the other."""

    __slots__ = ("arrived", "copied", "counted", "over", "preemptions", "request", "reserved", "source", "stages",
                 "stopped", "target", "transfer")  # fmt: skip

    def __init__(self, source: Replica, target: Replica) -> None:
        self.source = source
        self.target = target
        self.counted = source  # where routers count the request
        self.request: Request | None = None  # on the source; None: not chosen yet
        self.preemptions = 0  # of the request when it was chosen; another number later: it was preempted meanwhile
        self.reserved = 0  # blocks of the target
        self.copied = 0  # tokens
        self.stages = 0
        self.stopped = False  # the request has left the source
        self.arrived = False  # all its KV has
        self.over = False  # landed, called off or cut short
        self.transfer: Transfer | None = None


class Migration:
    """Pairs replicas every interval and takes requests from one to the other."""

    def __init__(
        self,
        cluster: ClusterPlan,
        clock: Clock,
        columns: Columns,
        dispatcher: Dispatcher,
        *,
        endless: bool,
        turnstile: Turnstile | None = None,
    ) -> None:
        """endless: goes on until the clock stops, not only until every request has ended. turnstile: of others who act
        on the engines. Raises ScenarioError when the groups do not fit together."""
        assert cluster.migration is not None
        check(cluster)
        assert cluster.topology is not None
        self.plan = cluster.migration
        self.transfers = Transfers(clock, cluster.topology)
        self.moved = self.called_off = 0  # requests
        self._clock, self._columns, self._dispatcher = clock, columns, dispatcher
        self._turnstile = turnstile or Turnstile(clock)
        self._endless = endless
        self._ended = 0  # rows before this one have ended
        self._replicas: Sequence[Replica] = ()
        self._lifecycle: Lifecycle | None = None
        self._pairs: dict[int, Moving] = {}  # by replica, both halves
        self._leaving: dict[int, Life] = {}  # replicas that drain: their requests move whatever the load
        self.events: list[ClusterEvent] = []

    def connect(self, replicas: Sequence[Replica]) -> None:
        """The replicas, once they are built: from now on pairs are made."""
        self._replicas = replicas
        self._at(1)

    def live(self, lifecycle: Lifecycle) -> None:
        """Replicas come and go: those that drain give their requests away, what was on the way to the dead is lost."""
        self._lifecycle = lifecycle
        lifecycle.travellers.append(self)
        if lifecycle.plan.migrates:
            lifecycle.move = self.leave
        self._at(1)

    def _at(self, tick: int) -> None:
        time = tick * self.plan.interval_s
        self._clock.at(time, TRANSFER, lambda _: self._tick(tick, time))

    def _tick(self, tick: int, now: float) -> None:
        if self._over():
            return
        self._pair(now)
        self._at(tick + 1)

    def _over(self) -> bool:
        if self._endless:
            return False
        status = self._columns.status
        while self._ended < len(status) and status[self._ended] != Status.IN_FLIGHT:
            self._ended += 1
        return self._ended == len(status)

    # -- pairing -------------------------------------------------------------------------------------------------

    def _open(self) -> Iterator[Replica]:
        if self._lifecycle is None:
            yield from self._replicas
        else:
            for life in self._lifecycle.places.everybody(State.READY):
                yield life.replica

    def _pair(self, now: float) -> None:
        plan = self.plan
        free: list[tuple[float, int, Replica]] = []
        for replica in self._open():
            if replica.index not in self._pairs:
                replica.engine.settle(now)
                state = replica.engine.state
                idle = not (len(state.waiting) or state.running)
                free.append((inf if idle else freeness(state), replica.index, replica))
        leaving = (life for life in self._leaving.values() if life.state is State.DRAINING)
        sources = [life.replica for life in leaving if life.index not in self._pairs]
        sources += [entry[2] for entry in sorted(free) if entry[0] < plan.out_below_tokens]
        targets = sorted((entry for entry in free if entry[0] > plan.in_above_tokens), key=lambda e: (-e[0], e[1]))
        for source in sources:
            partner = next((t for _, i, t in targets if i not in self._pairs and _can_take(source, t)), None)
            if partner is not None:
                moving = self._pairs[source.index] = self._pairs[partner.index] = Moving(source, partner)
                source.at_next_step(partial(self._begin, moving), now)

    def _begin(self, moving: Moving, time: float) -> bool:
        """Between two steps of the source: choose the request, the shortest of the lowest priority."""
        if moving.over:
            return True
        longest = moving.target.group.longest_request
        running = moving.source.engine.state.running
        able = [r for r in running if r.decoding and r.prompt_tokens + r.output_tokens <= longest]
        if not able:
            moving.over = True
            self._turnstile.then(-1, partial(self._part, moving), time)
            return True
        chosen = min(able, key=lambda r: (-r.priority, _length(r, moving.source), r.order))
        moving.request, moving.preemptions = chosen, chosen.preemptions
        self._copy(moving, chosen, time)
        return True

    def _part(self, moving: Moving, now: float) -> None:
        """They are no pair any more."""
        for replica in (moving.source, moving.target):
            self._pairs.pop(replica.index, None)
        lifecycle = self._lifecycle
        if lifecycle is None:
            return
        for replica in (moving.source, moving.target):
            lifecycle.empty_now(lifecycle.lives[replica.index], now)

    def _landed(self, moving: Moving, now: float) -> None:
        self._part(moving, now)
        if moving.source.index in self._leaving:
            self._pair(now)  # the next one

    # -- stages --------------------------------------------------------------------------------------------------

    def _copy(self, moving: Moving, request: Request, time: float) -> None:
        """Between two steps of the source: the next stage is what has been computed since the last one began."""
        if moving.over:
            return
        if not request.decoding or request.preemptions != moving.preemptions:
            self._call_off(moving, request, time)
            return
        computed = _length(request, moving.source)
        moving.stages += 1
        left = computed - moving.copied
        if moving.stages > 1 and (left <= self.plan.last_stage_tokens or moving.stages > self.plan.max_stages):
            self._stop(moving, request, time)
        else:
            self._reserve(moving, request, computed, time)

    def _reserve(self, moving: Moving, request: Request, computed: int, time: float) -> None:
        def ask(now: float) -> None:
            if not moving.over:
                moving.target.at_next_step(granted, now)

        def granted(at: float) -> bool:
            if moving.over:
                return True
            state = moving.target.engine.state
            need = -(-computed // state.block_size) - moving.reserved
            room = len(state.running) < state.args.max_num_seqs and not len(state.waiting)
            if not room or need + sum(lane.blocks_next for lane in state.lanes) > state.pool.free:
                self._call_off(moving, request, at)
                return True
            state.pool.take(max(need, 0))
            moving.reserved += max(need, 0)
            self._turnstile.then(request.row, partial(self._send, moving, request, computed), at)
            return True

        self._turnstile.then(request.row, ask, time)

    def _send(self, moving: Moving, request: Request, computed: int, now: float) -> None:
        if moving.over:
            return

        def arrived(at: float) -> None:
            moving.source.at_next_step(following, at)

        def following(time: float) -> bool:
            self._copy(moving, request, time)
            return True

        size = self._bytes(moving, moving.copied, computed)
        moving.copied = computed
        moving.transfer = self.transfers.send(
            "migration", request.row, moving.source, moving.target, size, now, arrived
        )

    def _stop(self, moving: Moving, request: Request, time: float) -> None:
        """The last stage: the request leaves the source and is on neither side until it has arrived."""
        computed, last_token = take_out(moving.source.engine, request)
        moving.stopped = True
        moved = elsewhere(request, computed=computed)
        moved.target = min(moved.target, computed)
        self._turnstile.then(
            request.row, partial(self._send_last, moving, request, moved, last_token), max(time, last_token)
        )

    def _send_last(self, moving: Moving, request: Request, moved: Request, last_token: float, now: float) -> None:
        if moving.over:
            return
        row = moved.row
        self._dispatcher.left(moving.source.place, request)
        self._dispatcher.joined(moving.target.place, moved)
        moving.counted = moving.target
        size = self._bytes(moving, moving.copied, moved.computed)

        def arrived(at: float) -> None:
            moving.arrived = True
            moving.target.at_next_step(partial(self._land, moving, moved, last_token), at)

        moving.transfer = self.transfers.send("migration", row, moving.source, moving.target, size, now, arrived)

    def _land(self, moving: Moving, moved: Request, last_token: float, time: float) -> bool:
        """Between two steps of the target. The few blocks that were not reserved before may have to become free."""
        if moving.over:
            return True
        engine = moving.target.engine
        pool = engine.state.pool
        need = -(-moved.computed // engine.state.block_size) - moving.reserved
        if need > 0:
            if pool.free < need:
                return False
            pool.take(need)
            moving.reserved += need
        if not land(engine, moved, last_token):
            return False
        self._columns.replica[moved.row] = moving.target.index
        self.moved += 1
        moving.over = True
        self._turnstile.then(moved.row, partial(self._landed, moving), time)
        return True

    def _call_off(self, moving: Moving, request: Request, time: float) -> None:
        assert not moving.stopped
        self.called_off += 1
        moving.over = True
        self._turnstile.then(request.row, partial(self._give_back, moving), time)

    def _give_back(self, moving: Moving, now: float) -> None:
        """The target has the blocks again that were reserved."""

        def release(_: float) -> bool:
            if moving.reserved:
                moving.target.engine.state.pool.give_back(moving.reserved)
            return True

        self._part(moving, now)
        moving.target.at_next_step(release, now)

    # -- replicas that go ----------------------------------------------------------------------------------------

    def leave(self, life: Life, time: float) -> bool:
        """Between two steps of a replica that drains: who waits goes elsewhere at once, the others move one by one."""
        lifecycle, waiting = self._lifecycle, life.replica.engine.state.waiting
        assert lifecycle is not None
        if life.state is not State.DRAINING:
            return True
        gone = [elsewhere(waiting.popleft()) for _ in range(len(waiting))]
        self._leaving[life.index] = life

        def go(now: float) -> None:
            for request in gone:
                lifecycle.ways.left(life, request)
                lifecycle.ways.route(request, now)
            lifecycle.empty_now(life, now)
            self._pair(now)

        lifecycle.later(life, go, time)
        return True

    def strand(self, life: Life, end: float, lost: Lost) -> None:
        """One of a pair goes: a request that is on neither side is lost, unless its KV has arrived."""
        assert self._lifecycle is not None
        self._leaving.pop(life.index, None)
        moving = self._pairs.get(life.index)
        if moving is None or moving.over or (moving.arrived and moving.source is life.replica):
            return
        moving.over = True
        self._lifecycle.later(life, partial(self._cut_short, moving, lost), end)

    def _cut_short(self, moving: Moving, lost: Lost, now: float) -> None:
        assert self._lifecycle is not None
        if moving.transfer is not None:
            self.transfers.cancel(moving.transfer, now)
        self.called_off += 1
        request = moving.request
        if moving.stopped and request is not None:
            again = elsewhere(request)
            again.preemptions, again.lost = request.preemptions + 1, request.lost
            self._columns.preemptions[request.row] = again.preemptions
            lost.append((self._lifecycle.lives[moving.counted.index], again))
        self._give_back(moving, now)

    def holds(self, life: Life) -> bool:
        """Whether it is one of a pair."""
        return life.index in self._pairs

    def records(self, until: float) -> Moved:
        """What the simulation's records say of all this. until: when it stopped, s."""
        return {"transfers": self.transfers.records(until), "link_bytes": self.transfers.link_bytes()}

    def _bytes(self, moving: Moving, first: int, last: int) -> float:
        kv = moving.source.group.kv
        assert kv is not None
        return kv.between(first, last)


def freeness(state: EngineState) -> float:
    """Tokens that every running request could still make, less what the head of the queue waits for."""
    blocks = state.pool.free
    if len(state.waiting):
        blocks -= -(-state.waiting[0].target // state.block_size)
    return blocks * state.block_size / max(len(state.running), 1)


def _length(request: Request, source: Replica) -> int:
    return source.engine.state.lanes[request.lane].computed_of(request)


def _can_take(source: Replica, target: Replica) -> bool:
    return source is not target and source.group.model == target.group.model


def check(cluster: ClusterPlan) -> None:
    """Raises ScenarioError when requests could not move."""
    where = "cluster.migration"
    plan = cluster.migration
    assert plan is not None
    most = [g.count for g in cluster.groups] if cluster.life is None else [g.max_replicas for g in cluster.life.groups]
    if sum(most) < 2:
        raise ScenarioError("migration needs two replicas.", where=where, remedy="Give the cluster more replicas.")
    if plan.in_above_tokens < plan.out_below_tokens:
        raise ScenarioError(
            f"a replica would be both: in_above_tokens ({plan.in_above_tokens:g}) is less than out_below_tokens "
            f"({plan.out_below_tokens:g}).",
            where=where,
            remedy="Let only replicas take requests that are freer than those that give them.",
        )
    assert cluster.topology is not None and all(group.kv is not None for group in cluster.groups)
