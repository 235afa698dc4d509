"""Autoscaling on a forecast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, exp
from typing import Annotated

from simulator.core.options import Range, read_options
from simulator.scaling.scaler import SCALERS, GroupFacts, OptionValue, Scaler, Surroundings, View


@dataclass(frozen=True, slots=True)
class Options:
    requests_per_s: Annotated[float, Range(1e-6)] = 1.0
    season_s: Annotated[float, Range(1)] = 86_400.0
    time_constant_s: Annotated[float, Range(0.001)] = 300.0
    horizon_s: Annotated[float, Range(0)] = 0.0
    down_delay_s: Annotated[float, Range(0)] = 300.0


@SCALERS.register("predictive")
class Predictive(Scaler):
    """The arrival rate expected when a replica started now would be ready, from past arrivals only.

    Decides: ceil(forecast / requests_per_s) replicas, where ``requests_per_s`` is what one replica serves within its
        SLO. The forecast is today's level (an exponentially weighted mean of the rate over ``time_constant_s``) times
        how the same stretch of the last season (``season_s``: a day) went on: the rate ``horizon_s`` later over the
        rate then. Until a season has passed, the level and its trend (double exponential smoothing). horizon_s 0: the
        group's cold start and one interval. It shrinks after ``down_delay_s`` of lower forecasts.
    Why it helps: replicas are ready when a rise comes, not a cold start later.
    Limits: needs a load that repeats; a burst unlike any before is seen when it is there.
    Reference: Holt (1957), 10.1016/j.ijforecast.2003.09.015, for level and trend; seasonal ratio as in Winters (1960),
        10.1287/mnsc.6.3.324.
    """

    def __init__(self, around: Surroundings, options: Mapping[str, OptionValue]) -> None:
        chosen = read_options(Options, "predictive", options, "autoscaler")
        self._forecasts = [_Forecast(group, around.interval_s, chosen) for group in around.groups]

    def desired(self, view: View) -> Sequence[int]:
        return [one.replicas(view.now, group.arrivals) for one, group in zip(self._forecasts, view.groups, strict=True)]


class _Forecast:
    """Past rates of one group, one per interval."""

    def __init__(self, group: GroupFacts, interval_s: float, options: Options) -> None:
        self._options = options
        self._interval_s = interval_s
        self._ahead = max(round((options.horizon_s or group.cold_start_s + interval_s) / interval_s), 1)
        self._weight = 1.0 - exp(-interval_s / options.time_constant_s)
        self._levels: list[float] = []  # requests/s, smoothed, by interval
        self._trend = 0.0  # requests/s per interval
        self._recent: list[tuple[float, int]] = []

    def replicas(self, now: float, arrivals: int) -> int:
        self._learn(arrivals / self._interval_s)
        wanted = ceil(max(self.expected(), 0.0) / self._options.requests_per_s)
        self._recent = [(t, n) for t, n in self._recent if t >= now - self._options.down_delay_s]
        self._recent.append((now, wanted))
        return max(n for _, n in self._recent)

    def _learn(self, rate: float) -> None:
        if not self._levels:
            self._levels.append(rate)
            return
        before, weight = self._levels[-1], self._weight
        level = before + weight * (rate - before)
        self._trend += weight * ((level - before) - self._trend)
        self._levels.append(level)

    def expected(self) -> float:
        """Requests/s when a replica started now would be ready."""
        levels = self._levels
        season = round(self._options.season_s / self._interval_s)
        then = len(levels) - 1 - season
        if then >= 0 and levels[then] > 0:
            # The highest of the way there: the replica must not come after a peak it was meant for.
            return levels[-1] * max(levels[then : then + self._ahead + 1]) / levels[then]
        return levels[-1] + max(self._trend, 0.0) * self._ahead
