"""The clock that costs the least energy while the SLO is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from simulator.core.options import Range, read_options
from simulator.scaling.clocks import CONTROLLERS, ClockController, Order
from simulator.scaling.scaler import GroupView, OptionValue, Surroundings, View
from simulator.scaling.steady import load_of, steady

CLOCKS = tuple(k / 20 for k in range(8, 21))  # shares of the maximum: 800 to 1,980 MHz of an H100


@dataclass(frozen=True, slots=True)
class SloOptions:
    """ttft_s, tpot_s: the SLO. headroom: the load is taken to be so many times what it is. margin: share of the SLO
    that is planned for."""

    ttft_s: Annotated[float, Range(0)] = 2.0
    tpot_s: Annotated[float, Range(0)] = 0.1
    headroom: Annotated[float, Range(1)] = 1.2
    margin: Annotated[float, Range(0, 1)] = 0.7


@CONTROLLERS.register("slo-clock")
class SloClock(ClockController):
    """Per group, of the clocks that would keep the SLO under the load of the moment the one that draws least.

    Decides: load (tokens made and prompt tokens that came since the last look) times ``headroom``, spread over the
        ready replicas; for each clock the profile tells TPOT, TTFT and power; the least power with both under
        ``margin`` of the SLO. Nothing does, or somebody waits: the highest clock.
    Why it helps: off the peak the SLO leaves time that dynamic power, which falls faster than the clock, turns into
        energy saved.
    Limits: profiles are exact here, measured on a real system; queueing is an estimate, bursts within an interval are
        left to the headroom.
    Reference: Stojkovic et al., DynamoLLM, HPCA 2025 (arXiv:2408.00741), its instance manager.
    """

    def __init__(self, around: Surroundings, options: Mapping[str, OptionValue]) -> None:
        self._options = read_options(SloOptions, "slo-clock", options, "clock controller")
        self._around = around

    def orders(self, view: View) -> Sequence[Order]:
        found = [self._clock(index, group) for index, group in enumerate(view.groups)]
        return [
            Order(index, clock, why="SLO")
            for index, (clock, group) in enumerate(zip(found, view.groups, strict=True))
            if clock != group.clock
        ]

    def _clock(self, index: int, group: GroupView) -> float:
        options, profile = self._options, self._around.groups[index].profile
        if profile is None or not group.ready or group.waiting > group.ready:
            return 1.0
        load = load_of(group, profile, self._around.interval_s).times(options.headroom)
        best, least = 1.0, float("inf")
        for clock in CLOCKS:
            found = steady(load, group.ready, clock, profile)
            if found is None or found.tpot_s > options.margin * options.tpot_s:
                continue
            if found.ttft_s <= options.margin * options.ttft_s and found.watts < least:
                best, least = clock, found.watts
        return best
