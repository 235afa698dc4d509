"""Live migration: requests move between replicas while they decode, to even out memory.

Llumnix (Sun et al., OSDI 2024, arXiv:2406.03243). Its measure is *freeness*, how many more tokens every running request
of a replica can make before the memory is full: (blocks free - blocks that the head of the queue waits for) / running
requests. Every interval the least free replica below one bound is paired with the freest above another, and one
request of it, the shortest, moves. Its KV is copied in stages while it goes on decoding: each stage sends what was made
during the one before. When little is left the request stops, and only that last stage is felt. The target reserves
blocks before each stage; when it has none, or the request ends or is preempted, the migration is called off.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import inf

from simulator.cluster.clock import TRANSFER, Clock
from simulator.cluster.dispatcher import Dispatcher
from simulator.cluster.plan import ClusterPlan
from simulator.cluster.replica import Replica
from simulator.cluster.transfers import Moved, Transfers, Turnstile
from simulator.core.errors import ScenarioError
from simulator.replica.moves import elsewhere, land, take_out
from simulator.replica.recorder import Columns
from simulator.replica.records import ClusterEvent, Status
from simulator.scheduling import POLICIES
from simulator.scheduling.request import Request


class Moving:
    """One request on its way."""

    __slots__ = ("copied", "preemptions", "request", "reserved", "source", "stages", "stopped", "target")

    def __init__(self, request: Request, source: int, target: int) -> None:
        self.request = request
        self.preemptions = request.preemptions  # another number later: it was preempted meanwhile
        self.source = source
        self.target = target
        self.reserved = 0  # blocks of the target
        self.copied = 0  # tokens
        self.stages = 0
        self.stopped = False  # it has left the source


class Migration:
    """Pairs replicas every interval and takes requests from one to the other."""

    def __init__(
        self,
        cluster: ClusterPlan,
        member: Sequence[int],
        clock: Clock,
        columns: Columns,
        dispatcher: Dispatcher,
        *,
        endless: bool,
    ) -> None:
        """endless: goes on until the clock stops, not only until every request has ended. Raises ScenarioError when
        the groups do not fit together."""
        assert cluster.migration is not None
        check(cluster)
        assert cluster.topology is not None
        self.plan = cluster.migration
        self.transfers = Transfers(clock, cluster.topology)
        self.moved = self.called_off = 0  # requests
        self._groups = [cluster.groups[g] for g in member]
        self._clock, self._columns, self._dispatcher = clock, columns, dispatcher
        self._turnstile = Turnstile(clock)
        self._endless = endless
        self._ended = 0  # rows before this one have ended
        self._replicas: Sequence[Replica] = ()
        self._busy: set[int] = set()  # replicas that are half of a pair
        self.events: list[ClusterEvent] = []

    def connect(self, replicas: Sequence[Replica]) -> None:
        """The replicas, once they are built: from now on pairs are made."""
        self._replicas = replicas
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

    def freeness(self, replica: Replica) -> float:
        """Tokens that every running request could still make; inf when the replica is idle."""
        state = replica.engine.state
        blocks = state.pool.free
        if len(state.waiting):
            head = state.waiting[0]
            blocks -= -(-head.target // state.block_size)
        elif not state.running:
            return inf
        return blocks * state.block_size / max(len(state.running), 1)

    def _pair(self, now: float) -> None:
        plan = self.plan
        free: list[tuple[float, int]] = []
        for replica in self._replicas:
            if replica.index not in self._busy:
                replica.engine.settle(now)
                free.append((self.freeness(replica), replica.index))
        sources = sorted(entry for entry in free if entry[0] < plan.out_below_tokens)
        targets = sorted((entry for entry in free if entry[0] > plan.in_above_tokens), key=lambda e: (-e[0], e[1]))
        for _, source in sources:
            partner = next((t for _, t in targets if t not in self._busy and self._can_take(source, t)), None)
            if partner is not None:
                self._busy |= {source, partner}
                self._replicas[source].at_next_step(partial(self._begin, source, partner), now)

    def _can_take(self, source: int, target: int) -> bool:
        one, other = self._groups[source], self._groups[target]
        return source != target and one.model == other.model

    def _begin(self, source: int, target: int, time: float) -> bool:
        """Between two steps of the source: choose the request, the shortest of the lowest priority."""
        longest = self._groups[target].longest_request
        running = self._replicas[source].engine.state.running
        able = [r for r in running if r.decoding and r.prompt_tokens + r.output_tokens <= longest]
        if not able:
            self._turnstile.then(-1, partial(self._part, source, target), time)
            return True
        chosen = min(able, key=lambda r: (-r.priority, self._length(r, source), r.order))
        self._copy(Moving(chosen, source, target), time)
        return True

    def _part(self, source: int, target: int, _: float) -> None:
        self._busy -= {source, target}

    def _length(self, request: Request, source: int) -> int:
        return self._replicas[source].engine.state.lanes[request.lane].computed_of(request)

    # -- stages --------------------------------------------------------------------------------------------------

    def _copy(self, moving: Moving, time: float) -> None:
        """Between two steps of the source: the next stage is what has been computed since the last one began."""
        request = moving.request
        if not request.decoding or request.preemptions != moving.preemptions:
            self._call_off(moving, time)
            return
        computed = self._length(request, moving.source)
        moving.stages += 1
        left = computed - moving.copied
        if moving.stages > 1 and (left <= self.plan.last_stage_tokens or moving.stages > self.plan.max_stages):
            self._stop(moving, time)
        else:
            self._reserve(moving, computed, time)

    def _reserve(self, moving: Moving, computed: int, time: float) -> None:
        def ask(now: float) -> None:
            self._replicas[moving.target].at_next_step(granted, now)

        def granted(at: float) -> bool:
            state = self._replicas[moving.target].engine.state
            need = -(-computed // state.block_size) - moving.reserved
            room = len(state.running) < state.args.max_num_seqs and not len(state.waiting)
            if not room or need + sum(lane.blocks_next for lane in state.lanes) > state.pool.free:
                self._call_off(moving, at)
                return True
            state.pool.take(max(need, 0))
            moving.reserved += max(need, 0)
            self._turnstile.then(moving.request.row, partial(self._send, moving, computed), at)
            return True

        self._turnstile.then(moving.request.row, ask, time)

    def _send(self, moving: Moving, computed: int, now: float) -> None:
        source = self._replicas[moving.source]

        def arrived(at: float) -> None:
            source.at_next_step(lambda time: self._next(moving, time), at)

        size = self._bytes(moving, moving.copied, computed)
        moving.copied = computed
        self.transfers.send("migration", moving.request.row, moving.source, moving.target, size, now, arrived)

    def _next(self, moving: Moving, time: float) -> bool:
        self._copy(moving, time)
        return True

    def _stop(self, moving: Moving, time: float) -> None:
        """The last stage: the request leaves the source and is on neither side until it has arrived."""
        request = moving.request
        engine = self._replicas[moving.source].engine
        computed, last_token = take_out(engine, request)
        moving.stopped = True
        moved = elsewhere(request, computed=computed)
        moved.target = min(moved.target, computed)
        self._turnstile.then(request.row, partial(self._send_last, moving, moved, last_token), max(time, last_token))

    def _send_last(self, moving: Moving, moved: Request, last_token: float, now: float) -> None:
        row = moved.row
        self._dispatcher.left(moving.source, moving.request)
        self._dispatcher.joined(moving.target, moved)
        size = self._bytes(moving, moving.copied, moved.computed)

        def arrived(at: float) -> None:
            target = self._replicas[moving.target]
            target.at_next_step(partial(self._land, moving, moved, last_token), at)

        self.transfers.send("migration", row, moving.source, moving.target, size, now, arrived)

    def _land(self, moving: Moving, moved: Request, last_token: float, time: float) -> bool:
        """Between two steps of the target. The few blocks that were not reserved before may have to become free."""
        engine = self._replicas[moving.target].engine
        pool = engine.state.pool
        need = -(-moved.computed // engine.state.block_size) - moving.reserved
        if need > 0:
            if pool.free < need:
                return False
            pool.take(need)
            moving.reserved += need
        if not land(engine, moved, last_token):
            return False
        self._columns.replica[moved.row] = moving.target
        self.moved += 1
        self._turnstile.then(moved.row, partial(self._part, moving.source, moving.target), time)
        return True

    def _call_off(self, moving: Moving, time: float) -> None:
        self.called_off += 1

        def release(_: float) -> bool:
            if moving.reserved:
                self._replicas[moving.target].engine.state.pool.give_back(moving.reserved)
            return True

        def ask(now: float) -> None:
            self._busy -= {moving.source, moving.target}
            self._replicas[moving.target].at_next_step(release, now)

        assert not moving.stopped
        self._turnstile.then(moving.request.row, ask, time)

    def records(self, until: float) -> Moved:
        """What the simulation's records say of all this. until: when it stopped, s."""
        return {"transfers": self.transfers.records(until), "link_bytes": self.transfers.link_bytes()}

    def _bytes(self, moving: Moving, first: int, last: int) -> float:
        kv = self._groups[moving.source].kv
        assert kv is not None
        return kv.between(first, last)


def check(cluster: ClusterPlan) -> None:
    """Raises ScenarioError when requests could not move."""
    where = "cluster.migration"
    plan = cluster.migration
    assert plan is not None
    if sum(group.count for group in cluster.groups) < 2:
        raise ScenarioError("migration needs two replicas.", where=where, remedy="Give the cluster more replicas.")
    for name, what in (("disaggregation", "disaggregation"), ("life", "scaling and faults")):
        if getattr(cluster, name) is not None:
            raise ScenarioError(
                f"migration in a cluster with {what} is not modelled.",
                where=where,
                remedy=f"Leave out {what}, or cluster.migration.",
            )
    if plan.in_above_tokens < plan.out_below_tokens:
        raise ScenarioError(
            f"a replica would be both: in_above_tokens ({plan.in_above_tokens:g}) is less than out_below_tokens "
            f"({plan.out_below_tokens:g}).",
            where=where,
            remedy="Let only replicas take requests that are freer than those that give them.",
        )
    for group in cluster.groups:
        if group.kv is None or cluster.topology is None:
            raise ScenarioError(f"group {group.name} does not say how large its KV is.", where=where)
        policy = group.args.policy
        if policy == "sglang" or not POLICIES.get(policy).grows:
            raise ScenarioError(
                f"group {group.name}: engine policy {policy!r} plans memory when it admits a request, which KV from "
                "elsewhere does not pass.",
                where=where,
                remedy="Use engine policy vllm, sarathi or fastgen.",
            )
