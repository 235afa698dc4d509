"""One design by simulation: the copies that a rate needs, or the rate that it sustains."""

from __future__ import annotations

import math
from dataclasses import replace

from simulator.core.errors import UserError
from simulator.planning.capacity import Fewest, fewest_copies, sustained, t_half_width
from simulator.planning.outcome import Bill, Outcome
from simulator.planning.probe import SKETCH, Bench, Probe
from simulator.planning.screen import Screened
from simulator.planning.study import Study

LOOK = 0.93  # a design whose first replication misses at this share of the rate it must beat is given up


def evaluate(task: tuple[Study, Screened, float | None]) -> Outcome:
    """One design by simulation. cutoff: what it must reach, None: whatever."""
    study, one, cutoff = task
    base = Outcome(one.design, "dominated", "", gpus=one.gpus, usd_per_hour=one.usd_per_hour, bound=one.bound)
    try:
        bench = study.bench(one.design)
        search = {"highest-rate": _rate, "lowest-bill": _bill}.get(study.plan.find, _copies)
        return search(study, one, bench, base, cutoff)
    except UserError as error:
        return replace(base, state="infeasible", reason=str(error), pruned_by="not a valid scenario")


def _copies(study: Study, one: Screened, bench: Bench, base: Outcome, cutoff: float | None) -> Outcome:
    plan = study.plan
    assert plan.rate is not None
    limit = one.limit if cutoff is None else min(one.limit, int(cutoff / one.cost + 1e-9))
    if one.least > limit:
        many = "one copy" if one.least == 1 else f"{one.least} copies"
        text = f"needs at least {many} by the throughput bound: {study.price(one.least * one.cost)}."
        return replace(base, reason=f"dominated: {text}", pruned_by="throughput bound against the best found")
    seeds = study.seeds(one.design)
    guess = max(one.least, min(math.ceil(plan.rate / one.guess), limit))
    if len(bench.trace(seeds[0])) > 2 * SKETCH:
        sketch = fewest_copies(bench.sketch, plan.rate, seeds[:1], least=one.least, guess=guess, limit=limit)
        guess = sketch.copies or limit
    found = fewest_copies(bench.probe, plan.rate, seeds, least=one.least, guess=guess, limit=limit)
    if found.copies is None:
        return _not_within(study, one, base, found, limit)
    return replace(
        base,
        state="ranked",
        copies=found.copies,
        gpus=one.gpus * found.copies,
        usd_per_hour=None if one.usd_per_hour is None else one.usd_per_hour * found.copies,
        cost=one.cost * found.copies,
        slack=sum(probe.slack for probe in found.at) / len(found.at),
        binding=found.below or found.at[0],
        probes=found.probes,
    )


def _not_within(study: Study, one: Screened, base: Outcome, found: Fewest, limit: int) -> Outcome:
    why = found.below.why if found.below is not None else ""
    many = f"{limit} copies" if limit > 1 else "one copy"
    text = f"{many} ({study.price(limit * one.cost)}) do not serve {study.plan.rate:g} requests/s: {why}."
    if limit == 1:
        text = text.replace(" do not ", " does not ")
    if limit < one.limit:
        return replace(
            base, reason=f"dominated: {text}", pruned_by="early stopping", binding=found.below, probes=found.probes
        )
    return replace(base, state="infeasible", reason=text, pruned_by="search", binding=found.below, probes=found.probes)


def _rate(study: Study, one: Screened, bench: Bench, base: Outcome, cutoff: float | None) -> Outcome:
    plan, seeds = study.plan, study.seeds(one.design)
    looked: list[Probe] = []
    start = one.guess
    if cutoff is not None:
        needed = cutoff * one.cost
        if one.bound < needed:
            text = f"dominated: carries at most {one.bound:.3g} requests/s by the throughput bound."
            return replace(base, reason=text, pruned_by="throughput bound against the best found")
        looked.append(bench.probe(LOOK * needed, 1, seeds[0]))
        if not looked[0].meets:
            text = f"dominated: misses at {LOOK * needed:.3g} requests/s already ({looked[0].why})."
            return replace(base, reason=text, pruned_by="early stopping", binding=looked[0], probes=tuple(looked))
        start = needed
    found = sustained(bench.probe, 1, seeds, guess=start, tolerance=plan.tolerance, confidence=plan.confidence)
    probes = (*looked, *found.probes)
    if not found.rate:
        why = found.above.why if found.above is not None else ""
        return replace(
            base, state="infeasible", reason=f"misses its SLO even at {found.high:.3g} requests/s: {why}.",
            pruned_by="search", binding=found.above, probes=probes,
        )  # fmt: skip
    return replace(
        base, state="ranked", copies=1, value=found.rate / one.cost, cost=one.cost, slack=0.0, sustained=found,
        binding=found.above, probes=probes,
    )  # fmt: skip


def _bill(study: Study, one: Screened, bench: Bench, base: Outcome, cutoff: float | None) -> Outcome:
    """As it stands, at the load's own times: what it holds costs, on average over the replications."""
    plan, probes = study.plan, []
    if cutoff is not None and one.cost > cutoff:
        text = f"dominated: costs at least {study.price(one.cost)}."
        return replace(base, reason=text, pruned_by="throughput bound against the best found")
    for seed in study.seeds(one.design):
        probe = bench.probe(None, 1, seed)
        probes.append(probe)
        if not probe.meets:
            text = f"does not serve this load: {probe.why}."
            return replace(
                base, state="infeasible", reason=text, pruned_by="search", binding=probe, probes=tuple(probes)
            )
        if cutoff is not None and LOOK * (probe.usd_per_hour or 0.0) > cutoff:
            text = f"dominated: the first replication costs {study.price(probe.usd_per_hour or 0.0)}."
            return replace(base, reason=text, pruned_by="early stopping", binding=probe, probes=tuple(probes))
    paid = tuple(probe.usd_per_hour or 0.0 for probe in probes)
    mean, half = sum(paid) / len(paid), t_half_width(paid, plan.confidence)
    held = [one.gpus if probe.gpus_held is None else probe.gpus_held for probe in probes]
    found = replace(
        base, copies=1, usd_per_hour=mean, cost=mean, bill=Bill(mean, max(mean - half, 0.0), mean + half, paid),
        gpus_held=sum(held) / len(held), slack=sum(probe.slack for probe in probes) / len(probes),
        binding=max(probes, key=lambda probe: probe.slack), probes=tuple(probes),
    )  # fmt: skip
    if plan.max_usd_per_hour is not None and mean > plan.max_usd_per_hour:
        return replace(found, state="infeasible", reason=f"costs {study.price(mean)}.", pruned_by="budget")
    return replace(found, state="ranked")


def certify(task: tuple[Study, Outcome]) -> Outcome:
    """An outcome with the rate that its copies sustain."""
    study, outcome = task
    plan = study.plan
    assert outcome.copies is not None and plan.rate is not None
    found = sustained(
        study.bench(outcome.design).probe,
        outcome.copies,
        study.seeds(outcome.design),
        guess=plan.rate,
        tolerance=plan.tolerance,
        confidence=plan.confidence,
    )
    return replace(outcome, sustained=found, binding=found.above or outcome.binding)
