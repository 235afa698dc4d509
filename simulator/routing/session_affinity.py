"""Session affinity."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from simulator.core.options import Range, read_options
from simulator.routing.fleet import Among, Ints
from simulator.routing.router import ROUTERS, Needs, Options, Router, Surroundings
from simulator.scheduling.request import Request


@dataclass(frozen=True, slots=True)
class Ring:
    """load_factor: a replica takes no more than so many times the mean of the requests in flight; 0: no bound.
    points: of each replica on the ring.
    """

    load_factor: Annotated[float, Range(0)] = 1.25
    points: Annotated[int, Range(1, 10_000)] = 100


@ROUTERS.register("session-affinity")
class SessionAffinity(Router):
    """All turns of a session to one replica, by consistent hashing with bounded loads.

    Decides: the session's hash is a place on a ring, and the next replica clockwise serves it; one that is closed or
    has ``load_factor`` times its share of the requests in flight is passed over. Rows without a session hash by row.
    Why it helps: a conversation finds its own KV again, with no index of caches, and when a replica goes only its own
    sessions move.
    Limits: shared system prompts are cached on every replica; without a bound hot sessions make hot replicas.
    Reference: Mirrokni, Thorup, Zadimoghaddam, SODA 2018 (arXiv:1608.01350); Karger et al., STOC 1997,
    10.1145/258533.258660.
    """

    def __init__(self, around: Surroundings, options: Options) -> None:
        chosen = read_options(Ring, "session-affinity", options, "router")
        if 0 < chosen.load_factor < 1:
            chosen = read_options(Ring, "session-affinity", {**options, "load_factor": 1.0}, "router")
        self._factor = chosen.load_factor
        self.needs = Needs.IN_FLIGHT if self._factor else Needs.NOTHING
        fleet, trace = around.fleet, around.trace
        self._fleet = fleet
        self._among = Among(fleet.size)
        places = mixed(np.arange(fleet.size * chosen.points, dtype=np.uint64))
        order = np.argsort(places, kind="stable")
        self._owner: list[int] = (order // chosen.points).tolist()
        rows = np.arange(len(trace), dtype=np.int64)
        key = rows if trace.session is None else np.where(trace.session >= 0, trace.session, -1 - rows)
        hashed = mixed(mixed(key.astype(np.uint64)) ^ np.uint64(SESSIONS))
        self._start = np.searchsorted(places[order], hashed) % len(order)  # of each row, on the ring

    def route(self, request: Request, candidates: Ints, now: float) -> int:
        del now
        owner, counts = self._owner, self._fleet.counts
        at = int(self._start[request.row])
        everybody = len(candidates) == self._fleet.size
        if everybody and not self._factor:
            return owner[at]
        mask = self._among.mask(candidates)
        limit = len(owner)  # more than anybody has
        if self._factor:
            limit = ceil(self._factor * (int(self._fleet.in_flight[candidates].sum()) + 1) / len(candidates))
        for step in range(len(owner)):
            replica = owner[(at + step) % len(owner)]
            if mask[replica] and (not self._factor or counts[replica] < limit):
                return replica
        raise AssertionError("a mean has somebody at or below it")


SESSIONS = 0x5E5510


def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A hash of each value: SplitMix64's finalizer (Steele, Lea, Flood, OOPSLA 2014, 10.1145/2660193.2660195)."""
    with np.errstate(over="ignore"):
        z = (values + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        found: NDArray[np.uint64] = z ^ (z >> np.uint64(31))
    return found
