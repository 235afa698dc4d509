"""Requests leave a replica that goes away with their KV, as far as the time that is left allows.

SpotServe (Miao et al., ASPLOS 2024, arXiv:2311.15566) moves KV within the grace period of a spot instance; what it
calls committing tokens is kept here too: whoever cannot move is computed again from prompt and streamed tokens.
Requests leave in order of admission, one after the other through the replica's network card; one that would not arrive
before the end is computed again elsewhere, and so is one whose prompt is not computed yet. The target is the open
replica with most free blocks, and the blocks are taken when the KV has arrived.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import partial

import numpy as np

from simulator.cluster.candidates import Candidates
from simulator.cluster.clock import TRANSFER
from simulator.cluster.life import Life, State
from simulator.cluster.lifecycle import Lifecycle
from simulator.cluster.ways import Lost
from simulator.replica.moves import elsewhere, evacuate, land, take_out
from simulator.replica.records import TransferRecords
from simulator.scheduling.request import Request


@dataclass(slots=True, eq=False)
class Flight:
    """One request on its way from one replica to another."""

    request: Request  # as it left, for computing it again
    moved: Request
    source: Life
    num_bytes: float
    start: float
    end: float
    last_token: float
    target: Life | None = None
    over: bool = False  # landed, or called back


class Rescue:
    """Moves requests with their KV."""

    def __init__(self, lifecycle: Lifecycle, candidates: Candidates) -> None:
        """candidates: who could go on with them."""
        self._lifecycle, self._candidates, self._columns = lifecycle, candidates, lifecycle.columns
        self._flights: list[Flight] = []
        self._coming: dict[Life, list[Flight]] = defaultdict(list)  # on their way to a replica
        self._sending: set[Life] = set()  # KV of their requests is on its way elsewhere
        assert all(group.kv is not None for group in lifecycle.groups)
        lifecycle.move = self.move
        lifecycle.travellers.append(self)

    def move(self, life: Life, time: float) -> bool:
        """Between two steps of a replica that drains: everybody leaves."""
        if life.state is not State.DRAINING:
            return True
        engine, group = life.replica.engine, self._lifecycle.groups[life.group]
        network = self._lifecycle.plan.groups[life.group].network_bytes_per_s
        assert group.kv is not None
        free = begun = max(time, engine.busy_until)
        flights = []
        for request in [r for r in engine.state.running if r.decoding]:
            computed = engine.state.lanes[request.lane].computed_of(request)
            size = group.kv.of(computed)
            if free + size / network > life.deadline:
                continue
            computed, last_token = take_out(engine, request)
            moved = elsewhere(request, computed=computed)
            moved.target = min(moved.target, computed)
            flights.append(Flight(request, moved, life, size, free, free + size / network, last_token))
            free += size / network
        self._sending.add(life)
        lost = [(life, request) for request in evacuate(engine)]
        self.strand(life, begun, lost)
        self._lifecycle.later(life, partial(self._leave, life, flights, lost, free), begun)
        return True

    def _leave(self, life: Life, flights: list[Flight], lost: Lost, until: float, now: float) -> None:
        lifecycle = self._lifecycle
        for flight in flights:
            lifecycle.ways.left(life, flight.request)
            target = self._target(flight.moved, now)
            if target is None:
                lifecycle.gone(self._again(flight), now)
                continue
            flight.target = target
            self._coming[target].append(flight)
            lifecycle.ways.joined(target, flight.moved)
            self._flights.append(flight)
            at = max(flight.end, now)
            lifecycle.clock.at(at, TRANSFER, partial(self._arrived, flight, at))
        lifecycle.again(lost, now)
        at = max(until, now)
        lifecycle.clock.at(at, TRANSFER, lambda _: self._sent(life, at))

    def _sent(self, life: Life, now: float) -> None:
        self._sending.discard(life)
        self._lifecycle.empty_now(life, now)

    def _target(self, request: Request, now: float) -> Life | None:
        """The open replica that could serve it with most blocks free, less those of requests that are on their way."""
        best, most = None, -1
        for slot in self._candidates.of(request.row).tolist():
            life = self._lifecycle.places.at(slot)
            if life is None or life.state is not State.READY:
                continue
            life.replica.engine.settle(now)
            state = life.replica.engine.state
            size = state.block_size
            free = state.pool.free - sum(-(-flight.moved.computed // size) for flight in self._coming[life])
            if free >= -(-request.computed // size) and free > most:
                best, most = life, free
        return best

    def _arrived(self, flight: Flight, now: float, _: object) -> None:
        target = flight.target
        assert target is not None
        if flight.over:
            return
        if flight.source.why == "failed":  # it did not live to send everything
            self._coming[target].remove(flight)
            self._lifecycle.again([(target, self._again(flight))], now)
            self._lifecycle.empty_now(target, now)
            return
        target.replica.at_next_step(partial(self._land, flight), now)

    def _land(self, flight: Flight, time: float) -> bool:
        del time
        if flight.over:
            return True
        target = flight.target
        assert target is not None
        engine, moved = target.replica.engine, flight.moved
        state = engine.state
        need = -(-moved.computed // state.block_size)
        room = len(state.running) < state.args.max_num_seqs
        if not room or need + sum(lane.blocks_next for lane in state.lanes) > state.pool.free:
            return False
        state.pool.take(need)
        landed = land(engine, moved, flight.last_token)
        assert landed
        self._columns.replica[moved.row] = target.replica.index
        flight.over = True
        self._coming[target].remove(flight)
        return True

    def strand(self, life: Life, end: float, lost: Lost) -> None:
        """A replica goes while requests are on their way to it: they are computed again."""
        del end
        lost.extend((life, self._again(flight)) for flight in self._coming.pop(life, ()))

    def holds(self, life: Life) -> bool:
        return bool(self._coming.get(life)) or life in self._sending

    def _again(self, flight: Flight) -> Request:
        """Its KV is lost: prompt and streamed tokens are computed again."""
        flight.over = True
        request = elsewhere(flight.request)
        request.preemptions = flight.request.preemptions + 1
        request.lost = flight.request.lost
        self._columns.preemptions[request.row] = request.preemptions
        return request

    def records(self) -> TransferRecords:
        """Of all that were sent, by start."""
        sent = sorted(self._flights, key=lambda flight: (flight.start, flight.moved.row))
        targets = [flight.target for flight in sent]
        return TransferRecords(
            kind=("rescue",) * len(sent),
            request=np.array([flight.moved.row for flight in sent], dtype=np.int64),
            source=np.array([flight.source.index for flight in sent], dtype=np.int64),
            target=np.array([-1 if target is None else target.index for target in targets], dtype=np.int64),
            num_bytes=np.array([flight.num_bytes for flight in sent], dtype=np.float64),
            start=np.array([flight.start for flight in sent], dtype=np.float64),
            end=np.array([flight.end for flight in sent], dtype=np.float64),
        )
