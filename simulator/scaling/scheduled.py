"""Autoscaling by the clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from simulator.core.errors import PolicyError
from simulator.scaling.scaler import SCALERS, OptionValue, Scaler, Surroundings, View

DAY_S = 86_400.0


@SCALERS.register("scheduled")
class Scheduled(Scaler):
    """So many replicas from such a time of day on, like KEDA's cron scaler.

    Decides: the replicas of the latest entry of ``hours``, a text such as ``"7:8, 19:3"`` (8 replicas from 7:00, 3 from
        19:00) that repeats every day; with several groups, ``hours.NAME`` gives a group its own. Times are those of the
        simulation clock, which starts at midnight unless ``start_hour`` says otherwise.
    Why it helps: no cold start is seen when a rise comes every day at the same time.
    Limits: does not see the load.
    Reference: KEDA's cron scaler.
    """

    def __init__(self, around: Surroundings, options: Mapping[str, OptionValue]) -> None:
        names = [group.name for group in around.groups]
        known = {"hours", "start_hour", *(f"hours.{name}" for name in names)}
        for name in options:
            if name not in known:
                remedy = f"Its options: {', '.join(sorted(known))}."
                raise PolicyError(f"autoscaler 'scheduled': unknown option {name!r}.", remedy=remedy)
        start = options.get("start_hour", 0)
        if isinstance(start, bool | str) or not 0 <= start < 24:
            raise PolicyError(f"autoscaler 'scheduled': start_hour is {start!r}.", remedy="Give an hour from 0 to 24.")
        self._start_s = 3600.0 * start
        self._hours = [_read(str(options.get(f"hours.{name}", options.get("hours", "")))) for name in names]

    def desired(self, view: View) -> Sequence[int]:
        time = (view.now + self._start_s) % DAY_S
        # Before the day's first entry the last one of the day before holds.
        return [next((n for begin, n in reversed(hours) if begin <= time), hours[-1][1]) for hours in self._hours]


def _read(text: str) -> list[tuple[float, int]]:
    found = []
    try:
        for entry in text.split(","):
            hour, _, replicas = entry.strip().partition(":")
            begin = float(hour)
            if not 0 <= begin < 24 or int(replicas) < 0:
                raise ValueError
            found.append((3600.0 * begin, int(replicas)))
    except ValueError:
        raise PolicyError(
            f"autoscaler 'scheduled': hours is {text!r}.",
            remedy="Give entries of HOUR:REPLICAS, such as '7:8, 19.5:3' (8 replicas from 7:00, 3 from 19:30).",
        ) from None
    return sorted(found)
