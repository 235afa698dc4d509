"""An engine of nodes that each hold some layers of the model on GPUs of their own kind; requests take their own routes.

A coordinator admits requests, in order, when there is a way for them through nodes with room for their KV, and chooses
it for good. A prompt goes through its nodes in chunks of ``max_num_batched_tokens`` at most; when its last chunk has
left the last node, a token comes back to the coordinator and goes out again. Every node computes what waits there, in
one batch after the other, whatever routes it has: decodes and, in order, as many prompt tokens as the budget takes. A
request that enters a node at a later layer than others joins the batch there, which is then priced in parts. What
leaves a batch for the same next node goes as one message; messages queue for the sender's way out (within a region) or
for the link of the two nodes (between regions).

KV is counted in tokens times layers on every node. Requests are admitted by what they are expected to need; where that
was too little and a node is full, the request admitted last of those there is preempted and computed again.

Nothing here is a step of the whole replica: every batch of every node is planned by itself, in both modes. Each request
keeps the times of its own tokens. Rows of the records follow each other: one ends with each batch that has been through
the last layer, and tells of that batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf

from simulator.cost.interface import StepCost
from simulator.cost.nodes import COORDINATOR, TOKEN_BYTES, Node, Wires
from simulator.replica.engine import Observer
from simulator.replica.recorder import BUFFER, Recorder
from simulator.replica.routes import Routes
from simulator.replica.stations import Journey, Station, Work
from simulator.replica.steps import FINISHED, Action, OnFinish
from simulator.scheduling.request import Request
from simulator.scheduling.state import EngineState

HERE, DONE, BACK = range(3)  # work reaches a node; a node's batch ends; work is back at the coordinator


@dataclass(frozen=True, eq=False)
class NodesPlan:
    """Nodes, what lies between them, and how requests go through them.

    routes: makes what chooses a request's route. activation_bytes: that a token takes from node to node.
    kv_high_water: share of a node's KV that admitted requests may be expected to fill. expected_output_tokens: of a
    request, for that. flow_tokens_per_s: prompt and output tokens that the nodes are believed to sustain.
    """

    nodes: tuple[Node, ...]
    num_layers: int
    wires: Wires
    routes: Callable[[], Routes]
    activation_bytes: float
    kv_high_water: float
    expected_output_tokens: int
    flow_tokens_per_s: float


class NodesEngine:
    """Same calls as ``Engine``. ``cost`` is that of the whole model on one of the GPUs, for whoever asks."""

    __slots__ = (
        "_actions",
        "_admits",
        "_blocks",
        "_events",
        "_free",
        "_journeys",
        "_number",
        "_plan",
        "_preempted",
        "_routes",
        "_told",
        "busy_until",
        "cost",
        "observer",
        "on_finish",
        "recorder",
        "state",
        "stations",
        "wake_time",
    )

    def __init__(
        self,
        state: EngineState,
        cost: StepCost,
        recorder: Recorder,
        *,
        plan: NodesPlan,
        on_finish: OnFinish | None = None,
        observer: Observer | None = None,
    ) -> None:
        """observer: told when the engine has woken; there are no steps of the replica to tell of."""
        self.state = state
        self.cost = cost
        self.recorder = recorder
        self.on_finish = on_finish
        self.observer = observer
        self.wake_time = inf
        self.busy_until = 0.0
        self.stations = [Station(node, plan.kv_high_water) for node in plan.nodes]
        self._plan = plan
        self._routes = plan.routes()
        self._events: list[tuple[float, int, int, int, list[Work]]] = []  # heap: time, number, kind, node, work
        self._number = 0
        self._free: dict[tuple[int, int], float] = {}  # by way out, s when it is free
        self._journeys: dict[Request, Journey] = {}  # admitted once, preempted ones included
        self._actions: list[Action] = []
        self._admits = False  # whether somebody may have room now
        self._told = 0.0  # s, up to where there are rows
        self._preempted = 0  # since the last row
        self._blocks = plan.num_layers * state.block_size  # tokens times layers of a block

    # -- called by the cluster ---------------------------------------------------------------------------------

    def add(self, request: Request, now: float) -> bool:
        """Queue a request. True when ``wake_time`` has changed."""
        waiting = self.state.waiting
        waiting.append(request)
        if waiting[0] is not request:
            return False
        self._admits = True
        return self._wake_by(now)

    def at_next_step(self, action: Action, now: float) -> bool:
        """See ``Engine``: here, between two events, at once."""
        self._actions.append(action)
        return self._wake_by(now)

    def token_time(self, lane: int) -> float:
        """Time of the last row, s."""
        del lane
        return self._told

    def quiet_until(self) -> float:
        """See ``Engine``: here, until the next event."""
        return self.wake_time

    def settle(self, now: float) -> None:
        """Bring ``state`` to what it is at ``now``."""
        if self.wake_time < now:
            self.run_until(now)

    def settle_cache(self, now: float) -> None:
        """See ``Engine``."""
        self.settle(now)

    def run_until(self, time: float) -> None:
        """Do all that happens before ``time``."""
        events = self._events
        while (now := self.wake_time) < time:
            if self._actions:
                self._actions[:] = [action for action in self._actions[:] if not action(now)]
            ready: dict[int, None] = {}
            while events and events[0][0] <= now:
                _, _, kind, node, works = heappop(events)
                if kind == HERE:
                    self.stations[node].queue.extend(works)
                    self.stations[node].queued_tokens += sum([work.new for work in works])
                elif kind == DONE:
                    self._done(node, works, now)
                else:
                    self._back(works, now)
                    continue
                ready[node] = None
            if self._admits:
                self._admit(now)
            for node in ready:
                station = self.stations[node]
                if not station.batch and station.queue:
                    self._start(node, station, now)
            if self.observer is not None:
                self.observer.settled(now, self.state)
            self.wake_time = now if self._admits else events[0][0] if events else inf

    def close(self, time: float) -> None:
        """Write down the requests still here; call once, when the simulation stops at ``time``."""
        del time
        for journey in self._journeys.values():
            self._write_tokens(journey)

    # -- the coordinator ---------------------------------------------------------------------------------------

    def _wake_by(self, now: float) -> bool:
        if now < self.wake_time:
            self.wake_time = now
            return True
        return False

    def _admit(self, now: float) -> None:
        """In order, as long as there is a way for the next one."""
        self._admits = False
        state = self.state
        while state.waiting and len(state.running) < state.args.max_num_seqs:
            request = state.waiting[0]
            journey = self._journeys.get(request) or Journey(request)
            tokens = request.prompt_tokens + max(self._plan.expected_output_tokens, journey.made)
            route = self._routes.find(tokens, self.stations)
            if route is None:
                return
            state.waiting.popleft()
            if request not in self._journeys:
                self._journeys[request] = journey
                self.recorder.scheduled[request.row] = now
            if not state.running:
                self._told = max(self._told, now)
            state.running[request] = state.prefilling[request] = None
            journey.order = next(state.admissions)
            journey.hops, journey.kv, journey.expected = route, [0] * len(route), tokens
            for position, hop in enumerate(route):
                station = self.stations[hop.node]
                station.here[journey] = position
                station.expected += tokens * hop.layers
            self._send(COORDINATOR, route[0].node, self._chunks(journey), now)

    def _chunks(self, journey: Journey) -> list[Work]:
        """The prompt, and what a preempted request had made, in pieces that fit a batch."""
        target, budget = journey.request.prompt_tokens + journey.made, self.state.args.max_num_batched_tokens
        return [
            Work(journey, min(budget, target - start), start, last=start + budget >= target)
            for start in range(0, target, budget)
        ]

    def _back(self, works: list[Work], now: float) -> None:
        """Tokens come out; they go in again unless they were the last."""
        onward: dict[int, list[Work]] = {}
        for work in works:
            if work.void:
                continue
            journey = work.journey
            request = journey.request
            journey.made += 1
            if journey.made == 1:
                self.recorder.first_token[request.row] = self.recorder.range_start[request.row] = now
            else:
                journey.times.append(now)
            if journey.made == request.output_tokens:
                self._finish(journey, now)
                continue
            work.computed += work.new
            work.new, work.decodes = 1, True
            onward.setdefault(work.go_to(0), []).append(work)
        for node, group in onward.items():
            self._send(COORDINATOR, node, group, now)

    def _finish(self, journey: Journey, now: float) -> None:
        request = journey.request
        self._leave(journey)
        self.state.running.pop(request)
        del self._journeys[request]
        self._write_tokens(journey)
        self.recorder.finish[request.row] = now
        self.recorder.status[request.row] = FINISHED
        self._admits = True
        if self.on_finish is not None:
            self.on_finish(request, now)

    def _leave(self, journey: Journey) -> None:
        """Its KV goes from all its nodes."""
        for hop, tokens in zip(journey.hops, journey.kv, strict=True):
            station = self.stations[hop.node]
            station.used -= tokens * hop.layers
            station.expected -= journey.expected * hop.layers
            del station.here[journey]
        self._count_blocks()

    def _count_blocks(self) -> None:
        """Free blocks, as if every node held all layers."""
        pool = self.state.pool
        pool.free = max(pool.num_blocks - -(-sum([station.used for station in self.stations]) // self._blocks), 0)

    def _preempt(self, journey: Journey) -> None:
        """All it has computed is lost; it is the next to be admitted."""
        request, state = journey.request, self.state
        self._leave(journey)
        journey.epoch += 1
        request.lost = max(journey.done, request.lost) if request.preemptions else journey.done
        request.preemptions += 1
        self.recorder.preemptions[request.row] = request.preemptions
        self._preempted += 1
        del state.running[request]
        state.prefilling.pop(request, None)
        state.waiting.appendleft(request)
        self._admits = True

    def _write_tokens(self, journey: Journey) -> None:
        row, recorder = journey.request.row, self.recorder
        recorder.first_step[row] = len(recorder.token_ends)
        recorder.token_ends.extend(journey.times)
        recorder.last_step[row] = len(recorder.token_ends)

    # -- nodes and links ---------------------------------------------------------------------------------------

    def _send(self, source: int, target: int, works: list[Work], now: float) -> None:
        """One message; it leaves when the ones before it have."""
        wires, nodes = self._plan.wires, self._plan.nodes
        near = wires.coordinator if source == COORDINATOR else nodes[source].region
        far = wires.coordinator if target == COORDINATOR else nodes[target].region
        for work in works:
            work.sent = now
        if COORDINATOR in {source, target}:
            size = TOKEN_BYTES * (len(works) if target == COORDINATOR else sum([work.new for work in works]))
        else:
            size = self._plan.activation_bytes * sum([work.new for work in works])
        if near != far:
            way, bandwidth, latency = (source, target), wires.region_bandwidth, wires.region_latency_s
        else:
            sender = nodes[target if source == COORDINATOR else source]
            way, bandwidth, latency = (source, source), sender.bandwidth, wires.latency_s
        out = max(now, self._free.get(way, 0.0)) + size / bandwidth
        self._free[way] = out
        self._push(out + latency, BACK if target == COORDINATOR else HERE, target, works)

    def _push(self, time: float, kind: int, node: int, works: list[Work]) -> None:
        self._number += 1
        heappush(self._events, (time, self._number, kind, node, works))

    def _start(self, node: int, station: Station, now: float) -> None:
        """Compute the next batch of a node; its KV is there from now on."""
        batch: list[Work] = []
        slots = station.node.kv_slots
        while station.queue and not batch:
            gone = False
            for work in self._next_batch(station):
                journey = work.journey
                if work.epoch != journey.epoch:
                    continue  # it had to give way to one before it
                need = work.new * work.layers
                if station.used + need > slots:
                    gone = True
                    if not self._make_room(station, work, need):
                        continue
                station.used += need
                journey.kv[work.position] += work.new
                batch.append(work)
            if gone:
                batch = [work for work in batch if not work.void]
        if not batch:
            return
        seconds = station.seconds(batch)
        station.batch = batch
        station.busy_s += seconds
        self.busy_until = max(self.busy_until, now + seconds)
        self._push(now + seconds, DONE, node, batch)

    def _next_batch(self, station: Station) -> list[Work]:
        """What waits, in order, within the budget: decodes pass a prompt that does not fit, prompts do not."""
        budget, left, full = self.state.args.max_num_batched_tokens, deque[Work](), False
        queue = station.queue
        if station.queued_tokens <= budget:
            station.queue, station.queued_tokens = left, 0
            return list(queue)
        batch: list[Work] = []
        for work in queue:
            if work.void:
                station.queued_tokens -= work.new
            elif work.new > budget or (full and not work.decodes):
                full = True
                left.append(work)
            else:
                budget -= work.new
                station.queued_tokens -= work.new
                batch.append(work)
        station.queue = left
        return batch

    def _make_room(self, station: Station, work: Work, need: int) -> bool:
        """Preempt whoever was admitted last of those with KV here until the work's fits; False: that was itself."""
        journey = work.journey
        while station.used + need > station.node.kv_slots:
            last = max((j for j, position in station.here.items() if j.kv[position] or j is journey), key=_order)
            self._preempt(last)
            if last is journey:
                return False
        return True

    def _done(self, node: int, batch: list[Work], now: float) -> None:
        """A batch ends: what comes out goes on, group by group."""
        self.stations[node].batch = []
        onward: dict[int, list[Work]] = {}
        out: list[Work] = []
        learns = self._routes.learns
        for work in batch:
            journey = work.journey
            if work.epoch != journey.epoch:
                continue
            position = work.position
            if learns and not work.decodes:
                before = journey.hops[position - 1].node if position else COORDINATOR
                self._routes.told(before, node, now - work.sent)
            if position + 1 == len(journey.hops):
                out.append(work)
                continue
            target = work.go_to(position + 1)
            group = onward.get(target)
            if group is None:
                onward[target] = [work]
            else:
                group.append(work)
        for target, group in onward.items():
            self._send(node, target, group, now)
        if out:
            self._write_row(out, now)
            tokens = [work for work in out if work.last]
            if tokens:
                self._send(node, COORDINATOR, tokens, now)

    def _write_row(self, out: list[Work], now: float) -> None:
        """What has been through all layers: the row begins where the one before ended, or work began."""
        state, recorder = self.state, self.recorder
        context = decodes = prefill_tokens = 0
        for work in out:
            request = work.journey.request
            work.journey.done = work.computed + work.new
            if work.decodes:
                decodes += 1
                context += work.computed + 1
            else:
                prefill_tokens += work.new
                if request.preemptions and work.computed < request.lost:
                    state.tokens_recomputed += min(work.computed + work.new, request.lost) - work.computed
                if work.last:
                    state.prefilling.pop(request, None)
        self._count_blocks()
        buffer = recorder.mixed_buffer
        if now == self._told and buffer:  # two nodes end at one instant
            buffer[-8:-4] = [
                old + new
                for old, new in zip(buffer[-8:-4], (context, decodes, prefill_tokens, len(out) - decodes), strict=True)
            ]
            return
        if len(buffer) > BUFFER:
            recorder.flush()
        buffer.extend(
            (
                self._told,
                now - self._told,
                context,
                decodes,
                prefill_tokens,
                len(out) - decodes,
                len(state.waiting),
                len(state.running),
                state.pool.free,
                self._preempted,
            )
        )
        self._told, self._preempted = now, 0


def _order(journey: Journey) -> int:
    return journey.order
