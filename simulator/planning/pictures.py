"""Runs that decide nothing: those behind the report's pictures."""

from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np

from simulator.core.errors import UserError
from simulator.metrics.series import mean_count
from simulator.metrics.slo import Slo
from simulator.planning.bounds import floors, roles_of
from simulator.planning.capacity import fewest_copies, sustained
from simulator.planning.change import Change, step_time_error
from simulator.planning.load import Design
from simulator.planning.outcome import Hour, Outcome, Shaken, Size
from simulator.planning.probe import Bench, Probe
from simulator.planning.study import Study
from simulator.scenario.config import Scenario
from simulator.scenario.engine import HardwareSpec, KernelSpeedSpec
from simulator.scenario.synthetic import Poisson
from simulator.scenario.workload import Transform

CURVE = (0.4, 0.6, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5)  # of the sustained rate, for the picture of the knee
TRAFFIC = 1.2
POINTS = 0.1  # by which the ratio of prefix hits is taken to be wrong
HOUR_S, SAMPLE = 3600.0, 5000
BEST = 5  # designs whose cost is drawn against the SLO


def patient_probe(task: tuple[Study, Design, float, int, int]) -> Probe:
    """A run to its end."""
    study, design, rate, copies, seed = task
    return study.bench(design).probe(rate, copies, seed, patient=True)


def with_slo(task: tuple[Study, Outcome, float]) -> tuple[float | None, tuple[Probe, ...]]:
    """Cost (or rate) of a design when the SLO's limits are multiplied, of the first replication."""
    study, outcome, factor = task
    assert outcome.design.scenario is not None
    plan, bench = study.plan, study.bench(outcome.design)
    slo = scaled(bench.slo, factor)
    seed = study.seeds(outcome.design)[:1]

    def run(rate: float, copies: int, number: int) -> Probe:
        return bench.probe(rate, copies, number, slo=slo)

    roles = roles_of(outcome.design.scenario)
    if not all(floor.possible for floor in floors(bench.groups, roles, bench.trace(seed[0]), slo)):
        return None, ()
    if plan.rate is None:
        assert outcome.sustained is not None
        rates = sustained(run, 1, seed, guess=outcome.sustained.rate, tolerance=0.05, confidence=plan.confidence)
        return (rates.rate or None), rates.probes
    assert outcome.copies is not None
    unit = outcome.cost / outcome.copies
    tighter = factor < 1.0
    limit = min(study.limit(bench.num_gpus, bench.usd_per_hour), 4 * outcome.copies) if tighter else outcome.copies
    least = outcome.copies if tighter else 1
    found = fewest_copies(run, plan.rate, seed, least=least, guess=outcome.copies, limit=limit)
    return (None if found.copies is None else found.copies * unit), found.probes


def size(task: tuple[Study, Outcome, int]) -> tuple[Size, tuple[Probe, ...]]:
    """What so many copies of a design sustain, of the first replication."""
    study, outcome, copies = task
    assert outcome.sustained is not None
    guess = outcome.sustained.by_seed[0] * copies / (outcome.copies or 1)
    found = sustained(
        study.bench(outcome.design).probe, copies, study.seeds(outcome.design)[:1], guess=guess, tolerance=0.05,
        confidence=study.plan.confidence,
    )  # fmt: skip
    return Size(copies, found.rate), found.probes


def fewer(copies: int) -> list[int]:
    """Those to look at beside ``copies``: one, and half as many."""
    return sorted({1, copies // 2} - {0, copies})


def as_it_stands(task: tuple[Study, Outcome]) -> tuple[float, float | None, tuple[Probe, ...]]:
    """(share of the SLO's limits that a design takes, inf: overloaded; its bill in USD per hour), to the run's end."""
    study, outcome = task
    probes = tuple(probe for probe in outcome.probes if probe.fraction == 1.0)
    if not probes or len(probes) < len(outcome.probes):
        probes = (study.bench(outcome.design).probe(None, 1, study.seeds(outcome.design)[0], patient=True),)
    paid = [probe.usd_per_hour or 0.0 for probe in probes]
    lost = any("rejected or failed" in probe.why for probe in probes)
    return math.inf if lost else max(probe.slack for probe in probes), sum(paid) / len(paid), probes


def scaled(slo: Slo, factor: float) -> Slo:
    """Every limit times ``factor``."""
    return replace(slo, **{name: limit * factor for name, limit in slo.limits().items()})  # type: ignore[arg-type]


def changes(study: Study, outcome: Outcome) -> list[Change]:
    """What the plan may be wrong about: prompts, the cache, the step times."""
    bench = study.bench(outcome.design)
    found = [Change("prompts twice as long", prompts=2.0), Change("prompts half as long", prompts=0.5)]
    if study.plan.find == "lowest-bill":
        found += [Change(f"traffic {by - 1:+.0%}", traffic=by) for by in (TRAFFIC, 2.0 - TRAFFIC)]
    hits = max((probe.prefix_hit_ratio or 0.0 for probe in outcome.probes if probe.meets), default=0.0)
    if hits > POINTS:
        found.append(Change(f"prefix hits {hits:.0%} less {POINTS * 100:.0f} points", private=POINTS / hits))
    error, stated = step_time_error(bench.groups)
    said = f"{error:.0%}" + ("" if stated else " (assumed)")
    what = "kernels" if study.plan.find == "lowest-bill" else "steps"
    found += [
        Change(f"{what} {said} {way}", slower=by) for way, by in (("slower", 1 + error), ("faster", 1 / (1 + error)))
    ]
    return found


def shake_bill(task: tuple[Study, Outcome, Change]) -> tuple[Shaken | None, tuple[Probe, ...]]:
    """What the load costs under a change, and how close to its limits; of the first replication. None: the design
    cannot have kernels of another speed.

    Replicas start and stop by the clock on the wall, so that slower steps are slower kernels here (their launches and
    the engine's overhead stay).
    """
    study, outcome, change = task
    assert outcome.design.scenario is not None
    scenario = with_kernels(outcome.design.scenario, 1.0 / change.slower)
    try:
        bench = Bench(scenario, study.ledger, replace(change, name=Change.name, slower=1.0))
    except UserError:
        return None, ()
    probe = bench.probe(None, 1, study.seeds(outcome.design)[0])
    whole = probe.fraction == 1.0
    slack = probe.slack if whole else math.inf
    return Shaken(change.name, usd_per_hour=probe.usd_per_hour if whole else None, slack=slack, why=probe.why), (probe,)


def with_kernels(scenario: Scenario, speed: float) -> Scenario:
    """All kernels of all groups at ``speed`` times theirs."""
    if speed == 1.0:
        return scenario

    def faster(hardware: HardwareSpec) -> HardwareSpec:
        now = hardware.kernel_speed or KernelSpeedSpec()
        each = {f.name: getattr(now, f.name) * speed for f in fields(now) if f.name != "gemm_max_tokens"}
        return replace(hardware, kernel_speed=replace(now, **each))

    groups = tuple(
        group if group.hardware is None else replace(group, hardware=faster(group.hardware))
        for group in scenario.cluster.groups
    )
    cluster = replace(scenario.cluster, groups=groups)
    return replace(scenario, hardware=faster(scenario.hardware), cluster=cluster)


def shake(task: tuple[Study, Outcome, Change]) -> tuple[Shaken, tuple[Probe, ...]]:
    """What the design sustains under a change, of the first replication.

    Steps slower by k are the same as limits and gaps between arrivals shorter by k: the clock counts in steps.
    """
    study, outcome, change = task
    assert outcome.sustained is not None
    bench = study.bench(outcome.design, Change(prompts=change.prompts, private=change.private))
    limits = scaled(bench.slo, 1.0 / change.slower)

    def run(rate: float, copies: int, seed: int) -> Probe:
        return bench.probe(rate, copies, seed, slo=limits)

    seeds, copies = study.seeds(outcome.design)[:1], outcome.copies or 1
    guess = outcome.sustained.by_seed[0] / change.prompts
    found = sustained(run, copies, seeds, guess=guess, tolerance=0.05, confidence=study.plan.confidence)
    return Shaken(change.name, found.rate / change.slower), found.probes


def by_hour(task: tuple[Study, Outcome]) -> tuple[Hour, ...]:
    """The best design through its load, hour by hour: what arrives beside what the replicas ready then carry."""
    study, outcome = task
    bench = study.bench(outcome.design)
    seed = study.seeds(outcome.design)[0]
    result = bench.result(None, 1, seed)
    records, good = result.records, result.analysis.outcome
    assert good is not None
    edges = np.arange(0.0, records.end + HOUR_S, HOUR_S)
    edges = edges[: int(result.trace.arrival[-1] // HOUR_S) + 1]
    which = np.digitize(records.requests.arrival, edges) - 1
    arrived, judged, met = (
        np.bincount(which[mask], minlength=len(edges))[: len(edges) - 1]
        for mask in (which < len(edges) - 1, good.decided & (which >= 0), good.good & (which >= 0))
    )
    if records.replicas:
        ready = mean_count(
            np.array([replica.ready for replica in records.replicas]),
            np.array([max(replica.ready, replica.stopped) for replica in records.replicas]),
            edges,
        )
    else:
        ready = np.full(len(edges) - 1, float(sum(group.replicas for group in bench.groups)))
    sizes = np.arange(int(np.ceil(ready.max(initial=0.0))) + 1)
    rates = [0.0, *(_steady(study, bench, seed, int(size)) for size in sizes[1:])]
    carries = np.interp(ready, sizes, rates)
    rows = zip(arrived.tolist(), carries.tolist(), ready.tolist(), judged.tolist(), met.tolist(), strict=True)
    return tuple(Hour(n / HOUR_S, c, r, m / j if j else None) for n, c, r, j, m in rows)


def _steady(study: Study, bench: Bench, seed: int, replicas: int) -> float:
    """Requests/s that so many replicas that stay sustain of such requests, at a steady rate."""
    scenario = bench.scenario
    steady = (Transform(head=SAMPLE), Transform(arrivals=Poisson(process="poisson", rate=1.0)))
    workload = replace(scenario.workload, transforms=(*scenario.workload.transforms, *steady))
    cluster = replace(scenario.cluster, replicas=replicas, scaling=None, cold_start=None, faults=())
    alone = Bench(replace(scenario, cluster=cluster, workload=workload), study.ledger)
    return sustained(
        alone.probe, 1, (seed,), guess=float(replicas), tolerance=0.05, confidence=study.plan.confidence
    ).rate
