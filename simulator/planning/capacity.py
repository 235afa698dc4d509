"""How much a design sustains, and how many copies a rate needs: searches over probes, with replications."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from simulator.planning.probe import Probe
from simulator.planning.search import highest_rate

Run = Callable[[float, int, int], Probe]  # (rate, copies, seed)
FIRST_FACTOR, NEXT_FACTOR = 1.5, 1.08  # how far the bracket moves: from a guess, and from another replication's answer


@dataclass(frozen=True)
class Sustained:
    """The highest rate within the SLO: mean of the replications, with its interval. 0: not even a thousandth of the
    guess was. ``above``: the run that missed just above it, None: none did."""

    rate: float
    low: float
    high: float
    by_seed: tuple[float, ...]
    above: Probe | None
    probes: tuple[Probe, ...]


def sustained(
    run: Run, copies: int, seeds: Sequence[int], *, guess: float, tolerance: float, confidence: float
) -> Sustained:
    """Bisection per replication, each with its own requests, stretched in time.

    Interval: Student's t over the replications (none from a single one), and the last bracket's half width, because
    each replication's answer is only known to lie in it.
    """
    probes: list[Probe] = []
    answers: list[float] = []
    above: Probe | None = None
    start, factor, lowest = guess, FIRST_FACTOR, guess / 1000.0
    for seed in seeds:

        def meets(rate: float, seed: int = seed) -> bool:
            probes.append(run(rate, copies, seed))
            return probes[-1].meets

        found = highest_rate(meets, start=start, tolerance=tolerance, factor=factor, lowest=min(lowest, start))
        if not found.rate:
            worst = probes[-1]
            return Sustained(0.0, 0.0, found.too_high, tuple(answers), worst, tuple(probes))
        answers.append(math.sqrt(found.rate * found.too_high) if found.too_high < math.inf else found.rate)
        missed = [probe for probe in probes if not probe.meets and probe.seed == seed]
        if above is None:
            above = min(missed, key=lambda probe: probe.rate, default=None)
        start, factor = found.rate, NEXT_FACTOR
    rate = float(np.mean(answers))
    half = t_half_width(answers, confidence) + 0.5 * tolerance * rate
    return Sustained(rate, max(rate - half, 0.0), rate + half, tuple(answers), above, tuple(probes))


def t_half_width(values: Sequence[float], confidence: float) -> float:
    """Of the interval of a mean; 0 for a single value, of which nothing is known."""
    from scipy.stats import t

    if len(values) < 2:
        return 0.0
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return float(t.ppf(0.5 + confidence / 2.0, len(values) - 1)) * error


@dataclass(frozen=True)
class Fewest:
    """Copies that serve a rate. ``copies`` None: not even ``limit`` do; ``below``: a run that missed with one less."""

    copies: int | None
    limit: int
    at: tuple[Probe, ...]  # one per replication, with these copies
    below: Probe | None
    probes: tuple[Probe, ...]


def fewest_copies(run: Run, rate: float, seeds: Sequence[int], *, least: int, guess: int, limit: int) -> Fewest:
    """The fewest copies with which every replication meets its SLO, between ``least`` and ``limit``.

    Goes up from a guess by a third until they do, then halves what is left. More copies are taken to serve no worse.
    """
    probes: list[Probe] = []

    def serve(copies: int) -> bool:
        for seed in seeds:
            probes.append(run(rate, copies, seed))
            if not probes[-1].meets:
                return False
        return True

    low, high = least - 1, 0
    copies = max(least, min(guess, limit))
    while copies <= limit:
        if serve(copies):
            high = copies
        else:
            low = copies
            if not high:
                if copies == limit:
                    break
                copies = min(limit, max(copies + 1, math.ceil(copies * 4 / 3)))
                continue
        if high - low <= 1:
            break
        copies = high - 1 if high - low <= 4 else (low + high) // 2
    last = {probe.copies: probe for probe in probes if not probe.meets}
    if not high:
        return Fewest(None, limit, (), last.get(max(last, default=0)), tuple(probes))
    at = tuple(probe for probe in probes if probe.copies == high)
    return Fewest(high, limit, at, last.get(high - 1), tuple(probes))
