"""Service level objectives: limits on a request's latency, presets from MLPerf Inference, and who meets them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from simulator.core.errors import UserError
from simulator.metrics.requests import Latencies
from simulator.metrics.stats import Floats
from simulator.metrics.token_times import Bools, TokenClock, TokenRanges, exceeds_itl
from simulator.replica.records import SimulationRecords, Status


@dataclass(frozen=True, slots=True)
class Slo:
    """Limits in seconds; None: no limit. A request is good when it meets every one of them by itself.

    percentile: the run as a whole meets a TTFT/TPOT/ITL/E2E limit when this percentile does (MLPerf: 99).
    """

    name: str = "custom"
    ttft_s: float | None = None
    tpot_s: float | None = None
    itl_s: float | None = None
    e2e_s: float | None = None
    percentile: float = 99.0

    def __post_init__(self) -> None:
        for limit, value in self.limits().items():
            if not value > 0:
                raise UserError(
                    f"SLO {self.name!r}: {limit} = {value!r} is not a positive number of seconds",
                    remedy="Give seconds, or leave the limit out.",
                )
        if not 0 < self.percentile <= 100:
            raise UserError(
                f"SLO {self.name!r}: percentile = {self.percentile!r} is outside (0, 100]",
                remedy="Give a percentile up to 100; MLPerf Inference uses 99.",
            )

    def limits(self) -> dict[str, float]:
        """The limits that are set, by field name, s."""
        every = {"ttft_s": self.ttft_s, "tpot_s": self.tpot_s, "itl_s": self.itl_s, "e2e_s": self.e2e_s}
        return {name: value for name, value in every.items() if value is not None}


def _mlperf(ttft_ms: float, tpot_ms: float) -> Slo:
    return Slo(ttft_s=ttft_ms / 1e3, tpot_s=tpot_ms / 1e3)


# p99 TTFT and p99 TPOT limits of MLPerf Inference datacenter, server and interactive scenarios
# (mlcommons/inference_policies, inference_rules.adoc, table of benchmarks; versions 4.1 to 6.0).
_PRESETS = {
    "mlperf-llama2-70b-server": _mlperf(2000, 200),
    "mlperf-llama2-70b-interactive": _mlperf(450, 40),
    "mlperf-llama3.1-8b-server": _mlperf(2000, 100),
    "mlperf-llama3.1-8b-interactive": _mlperf(500, 30),
    "mlperf-llama3.1-405b-server": _mlperf(6000, 175),
    "mlperf-llama3.1-405b-interactive": _mlperf(4500, 80),
    "mlperf-deepseek-r1-server": _mlperf(2000, 80),
    "mlperf-mixtral-8x7b-server": _mlperf(2000, 200),
}
SLO_PRESETS: Mapping[str, Slo] = MappingProxyType(
    {name: Slo(name, slo.ttft_s, slo.tpot_s) for name, slo in _PRESETS.items()}
)


def slo_preset(name: str, *, where: str | None = None) -> Slo:
    """The preset of that name.

    Raises:
        UserError: no such preset; the text names the nearest one and lists all.
    """
    if name in SLO_PRESETS:
        return SLO_PRESETS[name]
    near = difflib.get_close_matches(name, SLO_PRESETS, n=1, cutoff=0.3)
    hint = f"Did you mean {near[0]!r}? " if near else ""
    raise UserError(
        f"unknown SLO preset {name!r}", where=where, remedy=f"{hint}Presets: {', '.join(sorted(SLO_PRESETS))}."
    )


@dataclass(frozen=True, slots=True)
class SloOutcome:
    """Masks over requests (n,). ``decided`` is false only for a request in flight that may still turn out good."""

    good: Bools
    decided: Bools
    met: dict[str, Bools]  # by limit: finished and within it


def judge(
    records: SimulationRecords, latency: Latencies, slo: Slo, ranges: TokenRanges, clock: TokenClock
) -> SloOutcome:
    """Hold every request against every limit.

    A request with one output token has no TPOT or ITL and meets those limits, as in ``vllm bench serve``.
    One answered by the response cache has a TTFT and an E2E. Rejected and failed requests are never good. A request in
    flight is missed as soon as that is certain: its TTFT (so far, if it has no first token yet) or its age exceeds the
    limit.
    """
    requests = records.requests
    finished = (requests.status == Status.FINISHED) | (requests.status == Status.CACHED)
    met: dict[str, Bools] = {}
    values: dict[str, Floats] = {"ttft_s": latency.ttft, "tpot_s": latency.tpot, "e2e_s": latency.e2e}
    for name, limit in slo.limits().items():
        if name == "itl_s":
            within = ~exceeds_itl(ranges, clock, limit, len(finished))
        else:
            with np.errstate(invalid="ignore"):
                within = ~(values[name] > limit)
        met[name] = finished & within
    good = finished.copy()
    for mask in met.values():
        good &= mask
    undecided = (requests.status == Status.IN_FLIGHT) & ~_surely_missed(records, latency, slo)
    return SloOutcome(good, ~undecided, met)


def _surely_missed(records: SimulationRecords, latency: Latencies, slo: Slo) -> Bools:
    age = records.end - records.requests.arrival
    ttft_so_far = np.where(np.isnan(latency.ttft), age, latency.ttft)
    missed = np.zeros(len(age), dtype=bool)
    if slo.ttft_s is not None:
        missed |= ttft_so_far > slo.ttft_s
    if slo.e2e_s is not None:
        missed |= age > slo.e2e_s
    return missed
