"""What the memory plan, the latency floors, the throughput bound and the budget say of a design, before any run."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from simulator.core.errors import UserError
from simulator.planning.bounds import floors, highest_rate, likely_rate, roles_of
from simulator.planning.load import Design, reason_of
from simulator.planning.probe import Bench
from simulator.planning.runs import run_key
from simulator.planning.spec import Plan
from simulator.planning.study import Study
from simulator.scenario.config import Scenario
from traces.trace import Trace


@dataclass(frozen=True)
class Screened:
    """A design before any run. ``least``: copies that the bounds allow at least; ``cost``: of one copy, in what is
    minimised (USD per hour or GPUs), None: no price known."""

    design: Design
    reason: str = ""  # why it cannot be, empty: it may
    pruned_by: str = ""  # memory plan | latency floor | throughput bound | budget | price
    gpus: int = 0
    usd_per_hour: float | None = None
    cost: float = 0.0
    bound: float = 0.0
    guess: float = 0.0
    least: int = 1
    limit: int = 1


def screen_all(task: tuple[Study, Sequence[Design]]) -> list[Screened]:
    """Several designs, in one process."""
    study, designs = task
    return [_remembered(study, design) for design in designs]


def _remembered(study: Study, design: Design) -> Screened:
    if design.scenario is None:
        return Screened(design, design.reason, "not a valid scenario")
    plan = study.plan
    asked = (plan.find, plan.by, plan.rate, plan.max_copies, plan.max_gpus, plan.max_usd_per_hour)
    key = hashlib.sha256(f"screen/{run_key(design.scenario)}/{asked!r}".encode()).hexdigest()
    row = study.ledger.get(key)
    if row is not None:
        return Screened(design, **row["screened"])
    found = screen(study, design)
    row = {field.name: getattr(found, field.name) for field in fields(found) if field.name != "design"}
    study.ledger.add(key, {"screened": row})
    return found


def screen(study: Study, design: Design) -> Screened:
    """Judges a design that is a valid scenario."""
    assert design.scenario is not None
    plan = study.plan
    try:
        bench = study.bench(design)
        trace = bench.trace(design.scenario.seed)
    except UserError as error:
        return Screened(design, reason_of(error), "memory plan")
    usd = bench.usd_per_hour
    gpus = bench.num_gpus
    roles = roles_of(design.scenario)
    bound = highest_rate(bench.groups, roles, trace)
    base = Screened(design, gpus=gpus, usd_per_hour=usd, bound=bound)
    for floor in floors(bench.groups, roles, trace, bench.slo):
        if not floor.possible:
            said = f"{floor.name} of a request alone is {floor.floor_s:.3g} s at p{bench.slo.percentile:g}"
            return replace(base, reason=f"{said}, over its limit of {floor.limit_s:g} s.", pruned_by="latency floor")
    cost = study.unit_cost(gpus, usd)
    if cost is None:
        return replace(base, reason="no price is known: set hardware.price_per_gpu_hour.", pruned_by="price")
    if plan.find == "lowest-bill":
        return _bill(plan, base, bench, trace)
    least = 1 if plan.rate is None else max(1, math.ceil(plan.rate / bound))
    limit = 1 if plan.rate is None else study.limit(gpus, usd)
    if least > limit:
        text = f"needs at least {least} copies by the throughput bound ({bound:.3g} requests/s each), {limit} allowed."
        return replace(base, reason=text, pruned_by="throughput bound" if limit else "budget", least=least)
    if plan.rate is None and not study.limit(gpus, usd):
        return replace(base, reason="exceeds the budget.", pruned_by="budget")
    guess = min(likely_rate(bench.groups, roles, trace, bench.slo), bound)
    return replace(base, cost=cost, guess=guess, least=least, limit=limit)


def _bill(plan: Plan, base: Screened, bench: Bench, trace: Trace) -> Screened:
    """A design as it stands, under the load as it comes: can its most replicas carry the mean rate, and what is the
    least that it can cost?"""
    cluster = bench.scenario.cluster
    growth, floor = 1.0, bench.usd_per_hour or 0.0
    if cluster.faults:
        floor = 0.0
    if cluster.scaling is not None:
        room = [places(bench.scenario, index) for index in range(len(bench.groups))]
        growth = max(most / start for _, start, most in room)
        prices = [group.usd_per_hour or 0.0 for group in bench.groups]
        floor = sum(price * least for price, (least, _, _) in zip(prices, room, strict=True))
        if len(room) == 1:  # so much work, at this price: a run ends a little after its last arrival
            floor = max(floor, 0.95 * prices[0] * trace.rate / (base.bound / room[0][1]))
    if base.bound * growth < trace.rate:
        text = f"carries at most {base.bound * growth:.3g} requests/s by the throughput bound; {trace.rate:.3g} arrive."
        return replace(base, reason=text, pruned_by="throughput bound")
    if plan.max_usd_per_hour is not None and floor > plan.max_usd_per_hour:
        return replace(base, reason=f"costs at least ${floor:,.2f}/h.", pruned_by="budget")
    return replace(base, cost=floor, guess=base.bound)


def places(scenario: Scenario, group: int) -> tuple[int, int, int]:
    """Replicas of a group that scales: fewest, at the start, most."""
    cluster = scenario.cluster
    scaling = cluster.scaling
    assert scaling is not None
    if not cluster.groups:
        return scaling.min_replicas, cluster.replicas, scaling.max_replicas
    own = cluster.groups[group]
    least = scaling.min_replicas if own.min_replicas is None else own.min_replicas
    return least, own.replicas, own.max_replicas or scaling.max_replicas
