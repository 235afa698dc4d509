"""The highest rate that meets a target, by bracketing and bisection. General: it knows nothing of scenarios."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from simulator.core.errors import UserError


@dataclass(frozen=True, slots=True)
class Capacity:
    """``rate``: the highest one seen to meet the target, 0: none did; ``too_high``: the lowest seen to miss it above
    that, inf: none did. ``probes``: how many rates were tried."""

    rate: float
    too_high: float
    probes: int


def highest_rate(
    meets: Callable[[float], bool],
    *,
    start: float,
    tolerance: float = 0.02,
    lowest: float = 0.0,
    highest: float = math.inf,
    factor: float = 2.0,
) -> Capacity:
    """The highest rate at which ``meets(rate)`` is true, to a relative ``tolerance``.

    Goes up from ``start`` by ``factor`` until it misses, or down until it meets, then halves the bracket in the
    logarithm. For a target that, once missed, stays missed as the rate grows; with common random numbers (the same
    requests, their gaps stretched) what is found then compares between designs with little noise. ``lowest`` and
    ``highest`` bound the search (``lowest`` 0: to a thousandth of ``start``).

    Raises UserError when start or bounds are not rates.
    """
    floor = lowest or start / 1000.0
    if not 0 < floor <= start <= highest or not factor > 1 or not tolerance > 0:
        raise UserError(
            f"search from {start!r} between {lowest!r} and {highest!r} to {tolerance!r} makes no sense",
            remedy="Give positive rates with lowest <= start <= highest, a factor above 1 and a positive tolerance.",
        )
    good, bad, probes = 0.0, math.inf, 0
    rate = start
    while True:
        probes += 1
        if meets(rate):
            good = rate
            if rate >= highest or bad < math.inf:
                break
            rate = min(rate * factor, highest)
        else:
            bad = rate
            if rate <= floor or good > 0:
                break
            rate = max(rate / factor, floor)
    while good and bad / good > 1.0 + tolerance and bad < math.inf:
        middle = math.sqrt(good * bad)
        probes += 1
        if meets(middle):
            good = middle
        else:
            bad = middle
    return Capacity(good, bad, probes)
