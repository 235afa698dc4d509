"""The ``cluster`` fields of what stands before the router."""

from __future__ import annotations

from simulator.cluster.front import FrontPlan, ResponseCache
from simulator.scenario.spec import Fraction, Seconds, spec
from simulator.scenario.synthetic import DistributionSpec


@spec
class ResponseCacheSpec:
    """Answers known from earlier questions of the same meaning (GPTCache); what hits never reaches an engine."""

    hit_ratio: Fraction
    """Share of requests that find their answer; each by itself, at random. Quality is not looked at."""
    lookup_s: Seconds = 0.0
    """Embedding and search, for every request."""
    hit_s: Seconds = 0.0
    """From the search to the answer, for those that hit."""

    def build(self) -> ResponseCache:
        return ResponseCache(self.hit_ratio, self.lookup_s, self.hit_s)


def front_plan(cache: ResponseCacheSpec | None, retrieval: DistributionSpec | None) -> FrontPlan | None:
    """None: requests go to the router as they arrive."""
    if cache is None and retrieval is None:
        return None
    return FrontPlan(None if cache is None else cache.build(), None if retrieval is None else retrieval.build())
