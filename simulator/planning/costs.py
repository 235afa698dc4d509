"""What the best design costs: by way of renting, per token, in energy and carbon, and held against an API's price."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simulator.hardware.gpu import Pricing
from simulator.planning.outcome import Answer, Outcome, Size
from simulator.planning.probe import Bench, Probe
from simulator.scenario.energy import intensities

WAYS: tuple[Pricing, ...] = ("on-demand", "reserved", "spot")
SAID = {"on-demand": "on demand", "reserved": "reserved for a year", "spot": "spot, if it were never reclaimed"}
MOST_COPIES = 10_000  # beyond, an API that is still cheaper is taken to stay so


@dataclass(frozen=True)
class Load:
    """What is served. Tokens of the mean request; ``hits``: share of the prompts' tokens found in the prefix cache."""

    rate: float  # requests/s
    prompt_tokens: float
    output_tokens: float
    hits: float


@dataclass(frozen=True)
class Bill:
    """One way to pay for a load. per_output, per_total: USD per million output tokens, and tokens in and out."""

    name: str
    usd_per_hour: float
    per_output: float
    per_total: float


@dataclass(frozen=True)
class Energy:
    """Of all GPUs at this load, PUE included. grams_per_kwh: mean, and the least and most of a day's hours."""

    mean_w: float
    kwh_per_million_output: float
    kg_co2_per_day: float | None
    grams_per_kwh: tuple[float, float, float] | None


@dataclass(frozen=True)
class BreakEven:
    """Rates (requests/s) from which own GPUs are cheaper: at first, and for good; None: never."""

    first: float | None
    for_good: float | None


def load_of(answer: Answer, best: Outcome) -> Load:
    """The load at which the answer holds: the rate asked, the rate sustained, or the load as it comes."""
    bench = _bench(best)
    trace = bench.trace(bench.scenario.seed)
    rate = answer.file.plan.rate or (trace.rate if best.sustained is None else best.sustained.rate)
    hits = [probe.prefix_hit_ratio for probe in _served(answer, best) if probe.prefix_hit_ratio is not None]
    mean = sum(hits) / len(hits) if hits else 0.0
    return Load(rate, float(trace.prompt_tokens.mean()), float(trace.output_tokens.mean()), mean)


def bills(answer: Answer, best: Outcome) -> list[Bill]:
    """By way of renting, and by the API. What the scenario says itself comes first; nothing where no price is known."""
    load, plan = load_of(answer, best), answer.file.plan
    found = [] if best.usd_per_hour is None else [(SAID.get(_pricing(best), "as given"), 1.0)]
    found += [(SAID[way], share) for way, share in ways(best) if found and SAID[way] != found[0][0]]
    rows = [_bill(name, (best.usd_per_hour or 0.0) * share, load) for name, share in found]
    if plan.api_price is not None:
        rows.append(_bill("the API", 3600.0 * load.rate * api_usd(answer, load), load))
    return rows


def _bill(name: str, usd_per_hour: float, load: Load) -> Bill:
    requests = 3600.0 * load.rate
    per_total = usd_per_hour / requests / (load.prompt_tokens + load.output_tokens) * 1e6
    return Bill(name, usd_per_hour, usd_per_hour / requests / load.output_tokens * 1e6, per_total)


def ways(best: Outcome) -> list[tuple[Pricing, float]]:
    """Ways to rent all of its GPUs, over the price that it was given; none where that is not the catalogue's."""
    groups = _bench(best).groups
    if _pricing(best) == "own":
        return []
    now = sum((group.usd_per_hour or 0.0) * group.replicas for group in groups)
    found: list[tuple[Pricing, float]] = []
    for way in WAYS:
        each = [group.gpu.price(way) for group in groups]
        known = [price for price in each if price is not None]
        if now and len(known) == len(each):
            total = sum(p * group.num_gpus * group.replicas for p, group in zip(known, groups, strict=True))
            found.append((way, total / now))
    return found


def _pricing(best: Outcome) -> str:
    """The one way in which all groups are rented, ``mixed``, or ``own`` where a price is the user's."""
    scenario = _bench(best).scenario
    specs = [group.hardware or scenario.hardware for group in scenario.cluster.groups] or [scenario.hardware]
    if any(spec.price_per_gpu_hour is not None for spec in specs):
        return "own"
    kinds = {spec.pricing for spec in specs}
    return kinds.pop() if len(kinds) == 1 else "mixed"


def api_usd(answer: Answer, load: Load) -> float:
    """Of the mean request."""
    price = answer.file.plan.api_price
    assert price is not None
    hit = price.input_usd_per_mtok if price.cached_input_usd_per_mtok is None else price.cached_input_usd_per_mtok
    prompt = load.hits * hit + (1.0 - load.hits) * price.input_usd_per_mtok
    return (load.prompt_tokens * prompt + load.output_tokens * price.output_usd_per_mtok) / 1e6


def energy(answer: Answer, best: Outcome) -> Energy | None:
    """None: not known. Carbon at the hours of a load that lasts for a day or more; of a steady load, a whole day's."""
    served = [probe for probe in _served(answer, best) if probe.mean_w is not None]
    if not served:
        return None
    mean_w = sum(probe.mean_w or 0.0 for probe in served) / len(served)
    load = load_of(answer, best)
    per_output = mean_w / (load.rate * load.output_tokens) * 1e6 / 3.6e6
    series = intensities(_bench(best).scenario)
    if series is None:
        return Energy(mean_w, per_output, None, None)
    seen = [probe.mean_gco2_per_kwh for probe in served if probe.mean_gco2_per_kwh is not None]
    mean = sum(seen) / len(seen) if best.bill is not None and seen else float(np.mean(series))
    grams = (mean, float(np.min(series)), float(np.max(series)))
    return Energy(mean_w, per_output, mean_w * 24.0 / 1000.0 * mean / 1000.0, grams)


def break_even(usd_per_hour: float, sizes: Sequence[Size], usd_per_request: float) -> BreakEven:
    """Own GPUs come by whole copies, so that after each new one the API may be cheaper again for a while.

    usd_per_hour: of one copy. sizes: what copies sustain; between them by interpolation, beyond them by the last one's
    rate per copy.
    """
    first = for_good = None
    per_hour = 3600.0 * usd_per_request  # of a request per second
    pays_at_all = per_hour * sizes[-1].rate / sizes[-1].copies > usd_per_hour
    for copies in range(1, (MOST_COPIES if pays_at_all else sizes[-1].copies) + 1):
        before, upto, pays = carries(sizes, copies - 1), carries(sizes, copies), usd_per_hour * copies / per_hour
        if pays > upto:
            for_good = None
            continue
        start = max(pays, before)
        first = start if first is None else first
        for_good = start if for_good is None or pays > before else for_good
        if copies >= sizes[-1].copies and per_hour * upto >= usd_per_hour * (copies + 1):
            return BreakEven(first, for_good)
    return BreakEven(first, None)


def carries(sizes: Sequence[Size], copies: int) -> float:
    """Requests/s that so many copies sustain."""
    last = sizes[-1]
    if copies >= last.copies:
        return last.rate / last.copies * copies
    known = [(0, 0.0), *((size.copies, size.rate) for size in sizes)]
    return float(np.interp(copies, [count for count, _ in known], [rate for _, rate in known]))


def copies_for(sizes: Sequence[Size], rate: float) -> int:
    """The fewest copies that carry a rate."""
    copies = 0 if rate <= 0 else 1
    while carries(sizes, copies) < rate * (1.0 - 1e-12):
        copies += 1
    return copies


def own_price(best: Outcome) -> float | None:
    """USD per hour of one copy as the scenario rents it."""
    return None if best.usd_per_hour is None else best.usd_per_hour / (best.copies or 1)


def _served(answer: Answer, best: Outcome) -> list[Probe]:
    """Runs of the design, to their end, at the load at which the answer holds (at a rate sustained, next to it)."""
    copies = best.copies or 1
    more = best.sustained.probes if best.sustained is not None else ()
    ended = [probe for probe in (*best.probes, *more) if probe.meets and probe.fraction == 1.0]
    whole = [probe for probe in ended if probe.copies == copies]
    rate = answer.file.plan.rate
    if rate is not None:
        whole = [probe for probe in whole if math.isclose(probe.rate, rate)] or whole
    elif best.sustained is not None:
        nearest = best.sustained.rate
        whole = sorted(whole, key=lambda probe: abs(probe.rate - nearest))[: len(best.sustained.by_seed)]
    return whole


def _bench(best: Outcome) -> Bench:
    assert best.design.scenario is not None
    return Bench(best.design.scenario)
