"""What stands before the router: a cache of whole answers, and the retrieval of what a prompt is augmented with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from simulator.cluster.clock import ARRIVAL, Clock
from simulator.core.random import Streams
from simulator.replica.recorder import Columns
from simulator.replica.records import Status
from simulator.scheduling.request import Request
from traces.generate.distributions import Distribution

Deliver = Callable[[Request, float], None]


@dataclass(frozen=True)
class ResponseCache:
    """A cache of answers by the meaning of the question (GPTCache) or by its text.

    hit_ratio: share of requests that find their answer; a stationary hit process, drawn for each request by itself.
    lookup_s: embedding and search, paid by everybody. hit_s: the evaluation and delivery of an answer that is found.

    Reference: Bang, "GPTCache", NLP-OSS 2023 (10.18653/v1/2023.nlposs-1.24).
    """

    hit_ratio: float
    lookup_s: float = 0.0
    hit_s: float = 0.0


@dataclass(frozen=True)
class FrontPlan:
    """retrieval: s; it follows the look into the response cache. None: there is none."""

    response_cache: ResponseCache | None = None
    retrieval: Distribution | None = None


class Front:
    """Holds requests up before the router, and ends those whose answer is known.

    An answered request has status CACHED: it never reaches an engine, makes no tokens, and its first and last token
    come at once. Whoever waits for its answer goes on.
    """

    def __init__(
        self,
        plan: FrontPlan,
        clock: Clock,
        columns: Columns,
        rng: Streams,
        num_requests: int,
        *,
        deliver: Deliver,
        answered: Deliver | None,
    ) -> None:
        """deliver: where requests go on to. answered: told of those that end here; None: nobody wants to know."""
        self._clock, self._columns = clock, columns
        self._deliver, self._answered = deliver, answered
        self._hit = np.zeros(num_requests, dtype=bool)
        self._seconds = np.zeros(num_requests)  # from arrival to router, or to the answer
        if plan.retrieval is not None:
            self._seconds += plan.retrieval.ppf(rng.stream("retrieval").random(num_requests))
        cache = plan.response_cache
        if cache is not None:
            self._hit = rng.stream("response-cache").random(num_requests) < cache.hit_ratio
            self._seconds = cache.lookup_s + np.where(self._hit, cache.hit_s, self._seconds)

    def deliver(self, request: Request, now: float) -> None:
        """A request arrives."""
        row = request.row
        time = now + float(self._seconds[row])
        go_on = self._answer if self._hit[row] else self._deliver
        self._clock.at(time, ARRIVAL, lambda _: go_on(request, time))

    def _answer(self, request: Request, time: float) -> None:
        columns, row = self._columns, request.row
        columns.first_token[row] = columns.finish[row] = time
        columns.status[row] = Status.CACHED
        if self._answered is not None:
            self._answered(request, time)
