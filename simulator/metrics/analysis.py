"""What every table, export and picture of a run starts from, computed once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.metrics.requests import Breakdown, Latencies, breakdown, latencies
from simulator.metrics.slo import Slo, SloOutcome, judge
from simulator.metrics.stats import counted_percentiles
from simulator.metrics.token_times import Bools, TokenClock, TokenRanges, pooled_gaps, token_clock, token_ranges
from simulator.replica.records import SimulationRecords


@dataclass(frozen=True, slots=True)
class Analysis:
    """Token clock, ranges, latencies, breakdown and SLO outcome (None without an SLO) of one run."""

    clock: TokenClock
    ranges: TokenRanges
    latency: Latencies
    breakdown: Breakdown
    outcome: SloOutcome | None

    def percentile_of_limits(self, slo: Slo, finished: Bools) -> dict[str, float | None]:
        """The SLO's percentile of every limited metric over the given finished requests, s; None if none."""
        plain = {"ttft_s": self.latency.ttft, "tpot_s": self.latency.tpot, "e2e_s": self.latency.e2e}
        out: dict[str, float | None] = {}
        for name in slo.limits():
            if name == "itl_s":
                value = float(counted_percentiles(*pooled_gaps(self.ranges, self.clock, finished), [slo.percentile])[0])
            else:
                kept = plain[name][finished]
                kept = kept[~np.isnan(kept)]
                value = float(np.percentile(kept, slo.percentile)) if len(kept) else float("nan")
            out[name.removesuffix("_s")] = None if np.isnan(value) else value
        return out


def analyse(records: SimulationRecords, slo: Slo | None = None) -> Analysis:
    """Rebuild token times once (8 bytes per token step) and derive the per-request columns."""
    clock = token_clock(records)
    ranges = token_ranges(records, clock)
    latency = latencies(records.requests)
    outcome = judge(records, latency, slo, ranges, clock) if slo is not None else None
    return Analysis(clock, ranges, latency, breakdown(records, ranges), outcome)
