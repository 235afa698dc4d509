"""Power oversubscription: more servers than the row can feed at once, and clocks that give way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from simulator.core.errors import PolicyError
from simulator.core.options import Range, read_options
from simulator.scaling.clocks import CONTROLLERS, ClockController, Order
from simulator.scaling.scaler import OptionValue, Surroundings, View

Share = Annotated[float, Range(0.1, 1)]


@dataclass(frozen=True, slots=True)
class Options:
    """limit_w: what the row is provisioned for. low: group of low priority; the others are of high priority."""

    limit_w: Annotated[float, Range(0)] = 0.0
    low: str = ""
    first: Annotated[float, Range(0, 1)] = 0.8
    second: Annotated[float, Range(0, 1)] = 0.89
    margin: Annotated[float, Range(0, 1)] = 0.05
    low_first: Share = 0.904
    low_second: Share = 0.787
    high_second: Share = 0.926
    brake: Share = 0.204
    delay_s: Annotated[float, Range(0)] = 40.0
    brake_delay_s: Annotated[float, Range(0)] = 5.0


@CONTROLLERS.register("polca")
class Polca(ClockController):
    """Two thresholds on the row's power lock clocks, low priority first; at the limit a brake stops everybody.

    Decides: above ``first`` x ``limit_w`` the low group runs at ``low_first``; above ``second``, at ``low_second``, and
        if that was in force already and power is still above, the others at ``high_second``. A step is taken back when
        power is ``margin`` below its threshold. At the limit all go to ``brake`` until power is below ``second``. Locks
        take effect after ``delay_s`` (out of band, through the server's management), the brake after ``brake_delay_s``.
    Why it helps: servers of inference rarely peak together, and decodes hardly feel a lower clock: 30 % more servers
        in the same power.
    Limits: power is the mean since the last look; peaks within it are not seen. Only GPUs are counted.
    Reference: Patel et al., POLCA, ASPLOS 2024 (arXiv:2308.12908). Thresholds of 80 and 89 %, 1,275, 1,110 and
        1,305 of 1,410 MHz, 288 MHz for the brake and the delays are the paper's, as remembered.
    """

    def __init__(self, around: Surroundings, options: Mapping[str, OptionValue]) -> None:
        self._options = found = read_options(Options, "polca", options, "clock controller")
        names = [group.name for group in around.groups]
        if found.low not in names:
            raise PolicyError(
                f"clock controller 'polca': low {found.low!r} is no group.", remedy=f"Groups: {', '.join(names)}."
            )
        if found.limit_w <= 0:
            raise PolicyError(
                "clock controller 'polca' needs limit_w, the power that the row is provisioned for.",
                remedy="Give limit_w in W, of the GPUs.",
            )
        self._low = names.index(found.low)
        self._high = [g for g in range(len(names)) if g != self._low]
        self._step = 0  # 0 to 3: nothing, low, lower, everybody
        self._braked = False
        self._acted = -1e9  # s, last order

    def orders(self, view: View) -> Sequence[Order]:
        options = self._options
        share = sum(group.watts for group in view.groups) / options.limit_w
        if share >= 1.0 and not self._braked:
            self._braked, self._step = True, 3
            return [Order(g, options.brake, options.brake_delay_s, "brake") for g in range(len(view.groups))]
        if self._braked:
            if share >= options.second:
                return []
            self._braked = False
            return self._locks(3, options.brake_delay_s, "brake released")
        step = self._wanted(share)
        settled = view.now - self._acted > options.delay_s  # what was ordered last is in force
        if step == self._step or (step > self._step and not settled and step == 3):
            return []
        self._acted, before, self._step = view.now, self._step, step
        return self._locks(step, options.delay_s, "lock" if step > before else "unlock", before)

    def _wanted(self, share: float) -> int:
        """The step that this much power asks for."""
        options, now = self._options, self._step
        if share >= options.second:
            return max(min(now + 1, 3), 2)
        if share >= options.second - options.margin and now >= 2:
            return now
        if share >= options.first:
            return 1
        return 1 if now >= 1 and share >= options.first - options.margin else 0

    def _locks(self, step: int, delay_s: float, why: str, before: int | None = None) -> list[Order]:
        options = self._options
        low = (1.0, options.low_first, options.low_second, options.low_second)
        high = (1.0, 1.0, 1.0, options.high_second)
        found = []
        if before is None or low[step] != low[before]:
            found.append(Order(self._low, low[step], delay_s, why))
        if before is None or high[step] != high[before]:
            found += [Order(g, high[step], delay_s, why) for g in self._high]
        return found
