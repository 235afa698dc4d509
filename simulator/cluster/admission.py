"""Who is let in: rate limits, limits on what is in flight, and requests that would miss their TTFT anyway.

A request that is turned away ends at its arrival (HTTP 429 or 503): no replica ever sees it, and whoever waits for its
answer goes on. What may wait at the cluster's door instead waits in ``Door``, in the order of the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from simulator.core.errors import ScenarioError
from simulator.routing import Fleet
from simulator.routing.router import Predictor
from simulator.scheduling.request import Request
from traces.trace import Trace

Ints = NDArray[np.int64]
RATE, TOKENS, FULL, MISS, QUEUE, TIMEOUT = (
    "request rate limit",
    "token rate limit",
    "all replicas full",
    "predicted TTFT over the limit",
    "router queue full",
    "queue timeout",
)


@dataclass(frozen=True)
class Admission:
    """The rules. None: no such rule.

    requests_per_s, tokens_per_s: refill of a token bucket that holds ``burst_requests`` or ``burst_tokens`` (default:
    one second's refill, and at least one request); tokens are those of the prompt. per_tenant: one pair of buckets for
    each label of the trace's ``tenant`` column, the rows without one together.
    max_in_flight: requests per replica; when every replica that could serve a request has as many, it is rejected
    (``when_full: reject``, a 503) or waits at the router (``queue``), where at most ``max_queue`` may.
    order: of those that wait: fifo; deadline (earliest arrival + TTFT limit first); priority (smallest first).
    ttft_s, class_ttft_s: TTFT limits, s: for all, and by label of the ``slo_class`` column.
    reject_predicted_miss: turn away who would not get its first token within the limit on any replica.
    queue_timeout_s: who has waited at the router for so long is rejected.
    """

    requests_per_s: float | None = None
    burst_requests: float | None = None
    tokens_per_s: float | None = None
    burst_tokens: float | None = None
    per_tenant: bool = False
    max_in_flight: int | None = None
    when_full: Literal["reject", "queue"] = "reject"
    max_queue: int | None = None
    order: Literal["fifo", "deadline", "priority"] = "fifo"
    ttft_s: float | None = None
    class_ttft_s: Mapping[str, float] = field(default_factory=dict)
    reject_predicted_miss: bool = False
    queue_timeout_s: float | None = None

    @property
    def holds(self) -> bool:
        """Requests may wait for others to end."""
        return self.max_in_flight is not None and self.when_full == "queue"


class Bucket:
    """A token bucket: ``rate`` per second, at most ``burst``; full at the start."""

    __slots__ = ("_burst", "_level", "_rate", "_time")

    def __init__(self, rate: float, burst: float) -> None:
        self._rate, self._burst = rate, burst
        self._level, self._time = burst, 0.0

    def holds(self, amount: float, now: float) -> bool:
        """Whether ``amount`` is there at ``now``."""
        self._level = min(self._burst, self._level + self._rate * (now - self._time))
        self._time = now
        return self._level >= amount

    def take(self, amount: float) -> None:
        self._level -= amount


class Gate:
    """Decides on each request as it arrives."""

    def __init__(self, plan: Admission, trace: Trace, fleet: Fleet, predict: Predictor | None) -> None:
        """Raises ScenarioError when the trace lacks what a rule goes by."""
        self.plan = plan
        self._fleet = fleet
        self._predict = predict
        self._tenant = None
        if plan.per_tenant:
            self._tenant = _codes(trace, "tenant", "per_tenant")
        self._requests: dict[int, Bucket] = {}
        self._tokens: dict[int, Bucket] = {}
        self.limit = _limits(plan, trace)
        _check(plan, self.limit)

    def refuses(self, request: Request, candidates: Ints, now: float) -> str | None:
        """Why a request is turned away; None: it may come in. Only who comes in takes from the buckets."""
        plan, tenant = self.plan, -1 if self._tenant is None else int(self._tenant[request.row])
        requests = tokens = None
        if plan.requests_per_s is not None:
            requests = self._bucket(self._requests, tenant, plan.requests_per_s, plan.burst_requests)
            if not requests.holds(1.0, now):
                return RATE
        if plan.tokens_per_s is not None:
            tokens = self._bucket(self._tokens, tenant, plan.tokens_per_s, plan.burst_tokens)
            if not tokens.holds(request.prompt_tokens, now):
                return TOKENS
        if plan.max_in_flight is not None and not plan.holds and len(candidates):
            idlest = int(self._fleet.in_flight[candidates].min())
            if idlest >= plan.max_in_flight:
                return FULL
        if plan.reject_predicted_miss and len(candidates):
            assert self._predict is not None
            best = float(self._predict.ttft(self._fleet, request.prompt_tokens)[candidates].min())
            if now + best > self.deadline(request):
                return MISS
        if requests is not None:
            requests.take(1.0)
        if tokens is not None:
            tokens.take(request.prompt_tokens)
        return None

    def deadline(self, request: Request) -> float:
        """When its first token should be there, s."""
        return request.arrival + float(self.limit[request.row])

    def rank(self, request: Request) -> float:
        """Smaller ones leave the router's queue first."""
        if self.plan.order == "deadline":
            return self.deadline(request)
        return float(request.priority) if self.plan.order == "priority" else 0.0

    @staticmethod
    def _bucket(found: dict[int, Bucket], tenant: int, rate: float, burst: float | None) -> Bucket:
        bucket = found.get(tenant)
        if bucket is None:
            bucket = found[tenant] = Bucket(rate, max(rate, 1.0) if burst is None else burst)
        return bucket


@dataclass(slots=True)
class Waiting:
    """A request at the door."""

    request: Request
    since: float  # s
    here: bool = True


class Door:
    """Requests that wait at the router, by the set of replicas that could serve them."""

    def __init__(self, rank: Callable[[Request], float] | None = None) -> None:
        self._rank = rank
        self._heaps: dict[int, list[tuple[float, int, Waiting]]] = {}
        self._numbers = count()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def enter(self, kind: int, request: Request, now: float) -> Waiting:
        """kind: equal for requests that the same replicas could serve."""
        waiting = Waiting(request, now)
        rank = 0.0 if self._rank is None else self._rank(request)
        heappush(self._heaps.setdefault(kind, []), (rank, next(self._numbers), waiting))
        self._size += 1
        return waiting

    def leave(self, waiting: Waiting) -> None:
        """It has waited for too long."""
        if waiting.here:
            waiting.here = False
            self._size -= 1

    def withdraw(self, row: int) -> None:
        """It does not need a replica any more."""
        for heap in self._heaps.values():
            for _, _, waiting in heap:
                if waiting.request.row == row:
                    self.leave(waiting)

    def lines(self) -> dict[int, int]:
        """Requests in each line, by kind."""
        return {kind: sum(waiting.here for _, _, waiting in heap) for kind, heap in self._heaps.items()}

    def heads(self) -> list[tuple[int, Request]]:
        """(kind, request) of the first in each line, the one to go first in front."""
        found = []
        for kind, heap in self._heaps.items():
            while heap and not heap[0][2].here:
                heappop(heap)
            if heap:
                found.append((heap[0][:2], kind, heap[0][2].request))
        return [(kind, request) for _, kind, request in sorted(found, key=lambda entry: entry[0])]

    def pop(self, kind: int) -> Request:
        """The first in line of a kind."""
        waiting = heappop(self._heaps[kind])[2]
        waiting.here = False
        self._size -= 1
        return waiting.request

    def empty(self) -> list[Request]:
        """Everybody, in order."""
        found = []
        while heads := self.heads():
            found.append(self.pop(heads[0][0]))
        return found


def _codes(trace: Trace, column: str, rule: str) -> NDArray[np.int32]:
    labels = getattr(trace, column)
    if labels is None:
        remedy = f"Use a trace that has one, or leave {rule} out."
        raise ScenarioError(f"{rule} goes by the trace's {column} column, which it lacks.", remedy=remedy)
    codes: NDArray[np.int32] = labels.codes
    return codes


def _limits(plan: Admission, trace: Trace) -> NDArray[np.float64]:
    """TTFT limit of each row, s; inf: none."""
    limit = np.full(len(trace), inf if plan.ttft_s is None else plan.ttft_s)
    if plan.class_ttft_s:
        codes = _codes(trace, "slo_class", "class_ttft_s")
        assert trace.slo_class is not None
        for name, seconds in plan.class_ttft_s.items():
            if name not in trace.slo_class.names:
                known = ", ".join(trace.slo_class.names) or "none"
                raise ScenarioError(f"class_ttft_s: no request has slo_class {name!r}.", remedy=f"Classes: {known}.")
            limit[codes == trace.slo_class.names.index(name)] = seconds
    return limit


def _check(plan: Admission, limit: NDArray[np.float64]) -> None:
    needs_limit = plan.reject_predicted_miss or plan.order == "deadline"
    if needs_limit and len(limit) and not np.isfinite(limit).any():
        rule = "reject_predicted_miss" if plan.reject_predicted_miss else "order: deadline"
        remedy = "Set ttft_s or class_ttft_s, or an SLO with a TTFT limit."
        raise ScenarioError(f"{rule} needs a TTFT limit, and there is none.", remedy=remedy)
