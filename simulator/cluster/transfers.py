"""Transfers between replicas on the clock: the network's flows, what happens when one has arrived, and the records."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf, nextafter
from typing import Protocol, TypedDict

import numpy as np
from simpy.events import Event

from simulator.cluster.clock import TRANSFER, Clock
from simulator.hardware.network import Flow, Network
from simulator.hardware.topology import Topology
from simulator.replica.records import Ints, TransferRecords
from simulator.scheduling.request import Request

Arrived = Callable[[float], None]  # (now)
Finished = Callable[[Request, float], None]


@dataclass(frozen=True, slots=True)
class KvBytes:
    """Bytes of a request's KV cache in all layers, every KV head once.

    per_token: in layers that see everything; per_windowed_token: in sliding-window layers, of the last ``window``
    tokens; state: in linear-attention layers, whatever the length. layers: of the model.
    """

    per_token: float
    per_windowed_token: float = 0.0
    window: int | None = None
    state: float = 0.0
    layers: int = 1

    def of(self, tokens: int) -> float:
        """Of the first ``tokens`` tokens."""
        clipped = tokens if self.window is None else min(tokens, self.window)
        return self.per_token * tokens + self.per_windowed_token * clipped + (self.state if tokens else 0.0)

    def between(self, first: int, last: int) -> float:
        """Of the tokens ``[first, last)``."""
        return self.of(last) - self.of(first) if last > first else 0.0


class Moved(TypedDict, total=False):
    """Fields of ``SimulationRecords`` that tell of requests between replicas."""

    transfers: TransferRecords | None
    link_bytes: dict[str, float]
    prefill_replica: Ints


class Turnstile:
    """What several engines cause at one instant happens right after it, in the order of the requests' rows.

    Engines that plan at the same instant are called in an order that depends on how they were woken, which spans and
    single steps do differently. One float later all of them have planned, in either mode.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._queues: dict[float, list[tuple[int, int, Arrived]]] = {}

    def then(self, row: int, action: Arrived, now: float) -> None:
        """Call ``action(time)`` right after ``now``."""
        time = nextafter(now, inf)
        queue = self._queues.get(time)
        if queue is None:
            queue = self._queues[time] = []
            self._clock.at(time, TRANSFER, lambda _: self._pass(time))
        queue.append((row, len(queue), action))

    def after(self, told: Finished) -> Finished:
        """The same, told right after requests have ended."""

        def later(request: Request, time: float) -> None:
            self.then(request.row, partial(told, request), time)

        return later

    def _pass(self, time: float) -> None:
        for _, _, action in sorted(self._queues.pop(time), key=_row):
            action(time)


class End(Protocol):
    """A replica: as records number it, and as the topology does."""

    index: int
    place: int


class Transfer:
    """One transfer, in pieces that follow each other; a piece may have to wait until there is something to send."""

    __slots__ = ("closed", "done", "end", "flow", "kind", "latency_s", "num_bytes", "path", "pieces", "row", "source",
                 "start", "target")  # fmt: skip

    def __init__(self, kind: str, row: int, source: int, target: int, start: float) -> None:
        self.kind = kind
        self.row = row
        self.source = source
        self.target = target
        self.start = start  # s
        self.end = inf  # s
        self.num_bytes = 0.0  # handed to the network so far
        self.pieces: list[tuple[float, float, float]] = []  # (bytes, earliest start, when all of it is there), s
        self.flow: Flow | None = None
        self.closed = False  # nothing will be added
        self.done: Arrived | None = None
        self.path: dict[int, float] = {}
        self.latency_s = 0.0


class Transfers:
    """The network on the clock."""

    def __init__(self, clock: Clock, topology: Topology) -> None:
        self.topology = topology
        self.network = Network(topology.channels)
        self._clock = clock
        self._sending: dict[Flow, Transfer] = {}
        self._event: Event | None = None
        self._due = inf
        self._all: list[Transfer] = []

    def open(self, kind: str, row: int, source: End, target: End, now: float, done: Arrived) -> Transfer:
        """A transfer begins; ``done(time)`` is called when the last byte has arrived, after ``close``."""
        transfer = Transfer(kind, row, source.index, target.index, now)
        transfer.path, transfer.latency_s = self.topology.route(source.place, target.place)
        transfer.done = done
        self._all.append(transfer)
        return transfer

    def add(self, transfer: Transfer, size: float, now: float, *, begin: float = 0.0, made: float = 0.0) -> None:
        """``size`` more bytes to send, after those before them. They come to be between ``begin`` and ``made`` (s):
        the transfer cannot be faster than that.
        """
        transfer.pieces.append((size, begin, made))
        if transfer.flow is None and len(transfer.pieces) == 1:
            self._next(transfer, now)

    def close(self, transfer: Transfer, now: float) -> None:
        """Nothing more will be added."""
        transfer.closed = True
        if transfer.flow is None and not transfer.pieces:
            self._arrive(transfer, now)

    def send(self, kind: str, row: int, source: End, target: End, size: float, now: float, done: Arrived) -> Transfer:
        """``size`` bytes in one piece."""
        transfer = self.open(kind, row, source, target, now, done)
        self.add(transfer, size, now)
        self.close(transfer, now)
        return transfer

    def cancel(self, transfer: Transfer, now: float) -> None:
        """Nobody waits for it any more; what has been sent was sent."""
        transfer.done = None
        transfer.pieces.clear()
        if transfer.flow is not None:
            del self._sending[transfer.flow]
            transfer.num_bytes -= transfer.flow.size - self.network.cancel(transfer.flow, now)
            transfer.flow = None
            self._schedule()
        transfer.end = min(transfer.end, now)

    def records(self, until: float) -> TransferRecords:
        """All transfers by start; call once, at the end. until: when the simulation stopped, s."""
        self.network.settle(until)
        for flow, transfer in self._sending.items():
            transfer.num_bytes -= flow.remaining
        rows = sorted(self._all, key=lambda t: (t.start, t.row))
        return TransferRecords(
            kind=tuple(t.kind for t in rows),
            request=np.array([t.row for t in rows], dtype=np.int64),
            source=np.array([t.source for t in rows], dtype=np.int64),
            target=np.array([t.target for t in rows], dtype=np.int64),
            num_bytes=np.array([t.num_bytes for t in rows], dtype=np.float64),
            start=np.array([t.start for t in rows], dtype=np.float64),
            end=np.array([t.end if t.end <= until else inf for t in rows], dtype=np.float64),
        )

    def link_bytes(self) -> dict[str, float]:
        """Bytes carried by each link that carried any."""
        pairs = zip(self.network.channels, self.network.carried, strict=True)
        return {channel.name: carried for channel, carried in pairs if carried}

    # -- inside ------------------------------------------------------------------------------------------------

    def _next(self, transfer: Transfer, now: float) -> None:
        """Send the next piece, or wait until it begins to exist, or be done."""
        if not transfer.pieces:
            if transfer.closed:
                self._arrive(transfer, now)
            return
        size, begin, made = transfer.pieces[0]
        if begin > now:
            self._clock.at(begin, TRANSFER, lambda _: self._resume(transfer, begin))
            return
        del transfer.pieces[0]
        cap = size / (made - now) if made > now else inf
        transfer.num_bytes += size
        flow = transfer.flow = self.network.start(size, transfer.path, now, key=transfer.row, cap=cap)
        self._sending[flow] = transfer
        self._schedule()

    def _resume(self, transfer: Transfer, now: float) -> None:
        if transfer.done is not None and transfer.flow is None:
            self._next(transfer, now)

    def _arrive(self, transfer: Transfer, now: float) -> None:
        def arrived(_: Event) -> None:
            done, transfer.done = transfer.done, None
            if done is not None:
                done(transfer.end)

        transfer.end = now + transfer.latency_s
        self._clock.at(transfer.end, TRANSFER, arrived)

    def _schedule(self) -> None:
        """One event, for the flow that ends next."""
        due = self.network.next_end
        if due != self._due:
            self._due = due
            self._event = None if due == inf else self._clock.at(due, TRANSFER, self._wake)

    def _wake(self, event: Event) -> None:
        if event is not self._event:
            return
        now, self._due = self._due, inf
        for flow in self.network.ended(now):
            transfer = self._sending.pop(flow)
            transfer.flow = None
            self._next(transfer, now)
        self._schedule()


def joined(one: TransferRecords | None, other: TransferRecords | None) -> TransferRecords | None:
    """Both, by start."""
    if one is None or other is None:
        return one if other is None else other
    order = np.lexsort((np.concatenate([one.request, other.request]), np.concatenate([one.start, other.start])))
    kinds = (*one.kind, *other.kind)
    columns = {
        name: np.concatenate([getattr(one, name), getattr(other, name)])[order]
        for name in ("request", "source", "target", "num_bytes", "start", "end")
    }
    return TransferRecords(kind=tuple(kinds[i] for i in order.tolist()), **columns)


def _row(entry: tuple[int, int, Arrived]) -> int:
    return entry[0]
