"""One run of a design at a rate: does it meet its SLO? Hopeless runs are stopped as soon as that is certain."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from simulator.core.errors import ScenarioError
from simulator.cost.calibration import describe
from simulator.metrics.fleet import lifetimes
from simulator.metrics.slo import Slo
from simulator.metrics.summary import Summary
from simulator.planning.change import Change
from simulator.planning.ledger import Ledger, Row
from simulator.planning.runs import WORKSHOP, run_key
from simulator.replica.records import Status
from simulator.report.diagnosis import diagnose, missed_limits
from simulator.scenario.config import Scenario
from simulator.scenario.result import Result
from simulator.scenario.run import run
from traces import transforms
from traces.trace import Trace

Make = Callable[[], "Probe"]

SKETCH = 2000  # requests of a sketch
STAGES = (1 / 32, 1 / 8)  # of the time of arrivals: looks at what a run has missed by then
LEAST_REQUESTS = 1000  # below, a run is not looked at halfway


@dataclass(frozen=True)
class Probe:
    """One run. ``fraction``: of the time of arrivals that was simulated; below 1 it was certain by then to miss.

    percentile_s: the SLO's percentile of every limited metric, by its name. ``slack``: the largest of them over its
    limit (inf: overloaded). ``constraint``: what binds, with its evidence. ``tokens_per_s_per_user``: one over the
    median TPOT. ``gpus_held``, ``mean_w`` (of all GPUs, PUE included): on average. ``key``: which run this is; it
    counts once however often it is asked for.
    """

    rate: float
    copies: int
    seed: int
    meets: bool
    fraction: float
    verdict: str
    why: str
    percentile_s: Mapping[str, float | None]
    slack: float
    attainment: float | None
    goodput_request_per_s: float | None
    usd_per_hour: float | None
    usd_per_million_output_tokens: float | None
    constraint: str
    evidence: str
    next_step: str
    requests: int
    cpu_s: float
    output_tokens_per_s: float | None = None
    tokens_per_s_per_user: float | None = None
    gpus_held: float | None = None
    prefix_hit_ratio: float | None = None
    mean_w: float | None = None
    mean_gco2_per_kwh: float | None = None
    key: str = ""


class Bench:
    """A design whose engines are built: runs at any rate, with any number of copies."""

    def __init__(
        self,
        scenario: Scenario,
        ledger: Ledger | None = None,
        change: Change | None = None,
        requests: Trace | None = None,
    ) -> None:
        """ledger: of runs made before. change: of the load. requests: instead of the scenario's workload. Raises
        UserErrors like ``build_groups``."""
        self.scenario, self.ledger, self.change = scenario, ledger or Ledger(), change or Change()
        self.requests = requests
        self._load = "" if requests is None else fingerprint(requests)
        self.groups = WORKSHOP.groups(scenario)
        if any(group.nodes is not None for group in self.groups):
            raise ScenarioError(
                "what a placement over unlike nodes sustains does not follow from the prices of one GPU's steps.",
                where="engine.placement",
                remedy="Compare placements with windtunnel sweep, or ask the optimiser helix for one.",
            )
        slo = self.groups[0].slo
        assert slo is not None
        self.slo: Slo = slo

    @property
    def num_gpus(self) -> int:
        """Of one copy."""
        return sum(group.num_gpus * group.replicas for group in self.groups)

    @property
    def usd_per_hour(self) -> float | None:
        """Of one copy; None: a price is not known."""
        prices = [group.usd_per_hour for group in self.groups]
        known = [price for price in prices if price is not None]
        if len(known) < len(prices):
            return None
        return sum(price * group.replicas for price, group in zip(known, self.groups, strict=True))

    def trace(self, seed: int) -> Trace:
        trace = WORKSHOP.trace(replace(self.scenario, seed=seed)) if self.requests is None else self.requests
        return self.change.applied(trace, seed, max(group.args.max_model_len for group in self.groups))

    def calibration(self) -> dict[str, Any]:
        """By GPU: where step times come from, with their stated error."""
        return {group.gpu.name: describe(group.gpu, group.calibration, group.notes) for group in self.groups}

    def probe(
        self, rate: float | None, copies: int, seed: int, *, slo: Slo | None = None, patient: bool = False
    ) -> Probe:
        """rate: requests per second to which the load is stretched, None: its own times. patient: run to the end even
        when the SLO is certainly missed. slo: instead of the design's own."""
        limits = slo or self.slo
        kind = "whole" if patient else "probe"
        return self._once(kind, rate, copies, seed, limits, lambda: self._probe(rate, copies, seed, limits, patient))

    def _once(self, kind: str, rate: float | None, copies: int, seed: int, slo: Slo, make: Make) -> Probe:
        """The run from the ledger, or made now and put there."""
        asked = (
            f"{kind}/{run_key(replace(self.scenario, seed=seed))}/{rate!r}/{copies}/{slo!r}/{self.change!r}{self._load}"
        )
        key = hashlib.sha256(asked.encode()).hexdigest()
        row = self.ledger.get(key)
        if row is None:
            row = {"probe": _as_row(make())}
            self.ledger.add(key, row)
        return replace(_from_row(row["probe"]), key=key)

    def _probe(self, rate: float | None, copies: int, seed: int, limits: Slo, patient: bool) -> Probe:  # noqa: FBT001
        begin = time.process_time()
        trace = self.trace(seed) if rate is None else transforms.to_rate(self.trace(seed), rate)
        found: Result | None = None
        fraction = 1.0
        if not patient and len(trace) >= LEAST_REQUESTS and self.scenario.run.horizon_s is None:
            for stage in STAGES:
                early = self._run(trace, copies, seed, limits, horizon_s=_at(trace, stage))
                if certainly_missed(early, limits, len(trace), self._counts(trace)):
                    found, fraction = early, stage
                    break
        result = found or self._run(trace, copies, seed, limits)
        at = trace.rate if rate is None else rate
        return self._judged(result, at, copies, seed, limits, fraction, time.process_time() - begin)

    def result(self, rate: float | None, copies: int, seed: int) -> Result:
        """The whole run; rate None: at the load's own times."""
        trace = self.trace(seed) if rate is None else transforms.to_rate(self.trace(seed), rate)
        return self._run(trace, copies, seed, self.slo)

    def sketch(self, rate: float, copies: int, seed: int) -> Probe:
        """A run of the first requests alone: where to look, never an answer."""
        return self._once("sketch", rate, copies, seed, self.slo, lambda: self._sketch(rate, copies, seed))

    def _sketch(self, rate: float, copies: int, seed: int) -> Probe:
        begin = time.process_time()
        whole = transforms.to_rate(self.trace(seed), rate)
        result = self._run(whole.head(SKETCH), copies, seed, self.slo)
        return self._judged(result, rate, copies, seed, self.slo, 1.0, time.process_time() - begin)

    def scaled(self, copies: int) -> Scenario:
        """The scenario of so many copies."""
        cluster = self.scenario.cluster
        if not cluster.groups:
            return replace(self.scenario, cluster=replace(cluster, replicas=cluster.replicas * copies))
        more = tuple(replace(group, replicas=group.replicas * copies) for group in cluster.groups)
        return replace(self.scenario, cluster=replace(cluster, groups=more))

    def _run(self, trace: Trace, copies: int, seed: int, slo: Slo, horizon_s: float | None = None) -> Result:
        scenario = replace(self.scaled(copies), seed=seed)
        if horizon_s is not None:
            scenario = replace(scenario, run=replace(scenario.run, horizon_s=horizon_s, warmup_s=0.0, cooldown_s=0.0))
        groups = [replace(group, replicas=group.replicas * copies, slo=slo) for group in self.groups]
        return run(scenario, groups=groups, trace=trace)

    def _counts(self, trace: Trace) -> tuple[float, float]:
        """Arrival times between which requests are surely measured: not in the warm-up or the cool-down."""
        spec = self.scenario.run
        return float(trace.arrival[0]) + spec.warmup_s, float(trace.arrival[-1]) - spec.cooldown_s

    def _judged(
        self, result: Result, rate: float, copies: int, seed: int, slo: Slo, fraction: float, cpu_s: float
    ) -> Probe:
        summary = result.summary
        meets, why = judge(summary, slo)
        if fraction < 1.0:
            meets, why = False, f"certain to miss after {fraction:.0%} of the run: {why or misses(result)}"
        setup = self.groups[0]
        said = diagnose(
            summary,
            result.records,
            max_num_seqs=setup.args.max_num_seqs,
            max_num_batched_tokens=setup.args.max_num_batched_tokens,
        )
        percentiles = summary["slo"]["percentile_s"]
        cost = summary["cost"] or {}
        tpot = (summary["latency"]["tpot_s"] or {}).get("p50")
        return Probe(
            rate, copies, seed, meets, fraction, summary["stability"]["verdict"], why, percentiles,
            _slack(summary, percentiles), summary["slo"]["attainment"], summary["goodput_request_per_s"],
            cost.get("usd_per_hour"), cost.get("usd_per_million_output_tokens"), said.constraint,
            " ".join(said.evidence), " ".join(said.next_steps), len(result.trace), cpu_s,
            summary["throughput"]["output_tokens_per_s"], 1.0 / tpot if tpot else None,
            _gpus_held(result), summary["engine"]["prefix_hit_ratio_run"],
            (summary["energy"] or {}).get("mean_w"), (summary["carbon"] or {}).get("mean_gco2_per_kwh"),
        )  # fmt: skip


def fingerprint(trace: Trace) -> str:
    """A digest of requests that no scenario names."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    table = trace.to_arrow()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return hashlib.sha256(sink.getvalue()).hexdigest()


def _gpus_held(result: Result) -> float | None:
    """GPUs on average over the run's window, cold starts and drains included; None: of replicas that stay."""
    if not result.records.replicas:
        return None
    window = result.summary["window"]
    held = lifetimes(result.records, window["start_s"], window["end_s"])
    gpus = np.array([replica.num_gpus for replica in result.records.replicas], dtype=float)
    return float(gpus @ held) / max(float(window["end_s"] - window["start_s"]), 1e-12)


def _as_row(probe: Probe) -> Row:
    """JSON has no infinity: a slack that is none is null."""
    row = {field.name: getattr(probe, field.name) for field in fields(probe) if field.name != "key"}
    return row | {"slack": None if probe.slack == math.inf else probe.slack}


def _from_row(row: Row) -> Probe:
    return Probe(**row | {"slack": math.inf if row["slack"] is None else row["slack"]})


def _at(trace: Trace, fraction: float) -> float:
    first, last = float(trace.arrival[0]), float(trace.arrival[-1])
    return max(first + fraction * (last - first), 1e-6)


def judge(summary: Summary, slo: Slo) -> tuple[bool, str]:
    """Whether a run sustains its load within the SLO, and if not, why not.

    It does when it is not overloaded, the SLO's percentile of every limited metric is within its limit, and no more
    requests than that percentile leaves out were rejected or failed.
    """
    counts, found = summary["requests"], summary["slo"]
    if summary["stability"]["verdict"] == "overloaded":
        return False, "overloaded"
    lost = counts["rejected"] + counts["failed"]
    if not counts["finished"] or lost > (1.0 - slo.percentile / 100.0) * counts["arrived"]:
        return False, f"{lost:,} of {counts['arrived']:,} requests were rejected or failed"
    missed = missed_limits(summary)
    if missed:
        name = missed[0]
        value, limit = found["percentile_s"][name], found["limits_s"][name]
        return False, f"p{slo.percentile:g} {name.upper()} {value:.3g} s > {limit:g} s"
    return True, ""


def _slack(summary: Summary, percentiles: Mapping[str, float | None]) -> float:
    if summary["stability"]["verdict"] == "overloaded":
        return math.inf
    limits = summary["slo"]["limits_s"]
    return max((value / limits[name] for name, value in percentiles.items() if value is not None), default=math.inf)


def certainly_missed(early: Result, slo: Slo, total: int, counts: tuple[float, float]) -> bool:
    """Whether the whole run misses, judged from a run that was stopped: what has happened by then happens in the whole
    run too, because nothing in it depends on what comes later.

    A limit's percentile over at most ``total`` requests is above it when more than (1 - p) of them, and two for the
    interpolation, are. counts: only requests that arrive between these times (s).
    """
    outcome, requests = early.analysis.outcome, early.records.requests
    assert outcome is not None
    counted = np.isfinite(requests.arrival) & (requests.arrival >= counts[0]) & (requests.arrival <= counts[1])
    allowed = (1.0 - slo.percentile / 100.0) * total + 2.0
    finished = requests.status == Status.FINISHED
    ttft = early.analysis.latency.ttft
    late = np.where(np.isnan(ttft), early.records.end - requests.arrival, ttft)
    late = np.where(np.isfinite(requests.arrival), late, 0.0)
    lost = (requests.status == Status.REJECTED) | (requests.status == Status.FAILED)
    missed = {name: finished & ~met for name, met in outcome.met.items() if name != "itl_s"}
    if slo.ttft_s is not None:
        missed["ttft_s"] = ~lost & (late > slo.ttft_s)
    if slo.e2e_s is not None:
        age = np.where(np.isfinite(requests.arrival), early.records.end - requests.arrival, 0.0)
        missed["e2e_s"] |= (requests.status == Status.IN_FLIGHT) & (age > slo.e2e_s)
    return max(int(np.sum(mask & counted)) for mask in (*missed.values(), lost)) > allowed


def misses(result: Result) -> str:
    """The limit that most requests miss, with the percentile so far."""
    shares = result.summary["slo"]["attainment_by_limit"]
    known = {name: share for name, share in shares.items() if share is not None}
    if not known:
        return "hardly any request gets its first token in time"
    worst = min(known, key=lambda name: known[name])
    return f"{1.0 - known[worst]:.0%} of the requests judged by then miss {worst.upper()}"
