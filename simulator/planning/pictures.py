"""Runs that decide nothing: those behind the report's pictures."""

from __future__ import annotations

from dataclasses import replace

from simulator.metrics.slo import Slo
from simulator.planning.bounds import floors, roles_of
from simulator.planning.capacity import fewest_copies, sustained
from simulator.planning.load import Design
from simulator.planning.outcome import Outcome
from simulator.planning.probe import Probe
from simulator.planning.study import Study

CURVE = (0.4, 0.6, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5)  # of the sustained rate, for the picture of the knee
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


def scaled(slo: Slo, factor: float) -> Slo:
    """Every limit times ``factor``."""
    return replace(slo, **{name: limit * factor for name, limit in slo.limits().items()})  # type: ignore[arg-type]
