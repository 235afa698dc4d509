"""The arithmetic of Kubernetes' horizontal pod autoscaler with KEDA's step to and from zero, for any metric.

Reference: Kubernetes 1.31, pkg/controller/podautoscaler (desired = ceil(total / target) unless within the tolerance of
10 %; stabilisation windows of 300 s down and 0 s up; at most twice as many or four more per 15 s); KEDA 2.15
(cooldownPeriod of 300 s before the last replica goes; one comes back when the metric is above zero).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import ceil
from typing import Annotated

from simulator.core.options import Range
from simulator.scaling.scaler import GroupFacts

UP_PERIOD_S, UP_STEP = 15.0, 4  # HPA's default scale-up policies: +100 % or +4, whichever is more, per 15 s


@dataclass(frozen=True, slots=True)
class HpaOptions:
    """Under the names of the HPA's ``behavior`` and of KEDA's ScaledObject. average_s: the metric is its mean over so
    long, as ``avg_over_time`` in KEDA's Prometheus query; 0: its value at the moment."""

    average_s: Annotated[float, Range(0)] = 60.0
    tolerance: Annotated[float, Range(0, 10)] = 0.1
    stabilization_down_s: Annotated[float, Range(0)] = 300.0
    stabilization_up_s: Annotated[float, Range(0)] = 0.0
    cooldown_s: Annotated[float, Range(0)] = 300.0


class Hpa:
    """The memory of one group's autoscaler: its recent recommendations and when it last was busy."""

    def __init__(self, group: GroupFacts, options: HpaOptions) -> None:
        self._group = group
        self._options = options
        self._metric: deque[tuple[float, float]] = deque()  # (time, value)
        self._recent: deque[tuple[float, int]] = deque()  # (time, recommendation)
        self._sizes: deque[tuple[float, int]] = deque()  # (time, replicas that had been asked for before)
        self._busy = 0.0  # s, when there was work last

    def recommend(self, now: float, current: int, total: float, target: float, *, busy: bool) -> int:
        """Replicas for a metric that is ``total`` over the group and should be ``target`` per replica.

        busy: there is any work at all.
        """
        total = self._averaged(now, total)
        if busy:
            self._busy = now
        if current == 0:
            wanted = 1 if busy else 0
        else:
            ratio = total / (target * current)
            wanted = current if abs(ratio - 1.0) <= self._options.tolerance else ceil(total / target)
            idle = not busy and now - self._busy >= self._options.cooldown_s
            wanted = 0 if self._group.min_replicas == 0 and idle else max(wanted, 1)
        wanted = min(max(wanted, self._group.min_replicas), self._group.max_replicas)
        return self._paced(now, current, self._stabilized(now, current, wanted))

    def _averaged(self, now: float, value: float) -> float:
        metric = self._metric
        metric.append((now, value))
        while metric[0][0] <= now - self._options.average_s and len(metric) > 1:
            metric.popleft()
        return sum(v for _, v in metric) / len(metric)

    def _stabilized(self, now: float, current: int, wanted: int) -> int:
        """Down only to the most, up only to the least that was recommended within the window."""
        down, up = self._options.stabilization_down_s, self._options.stabilization_up_s
        recent = self._recent
        recent.append((now, wanted))
        while recent[0][0] < now - max(down, up):
            recent.popleft()
        least = min(n for time, n in recent if time >= now - up)
        most = max(n for time, n in recent if time >= now - down)
        if current < least:
            return least
        return min(current, most)

    def _paced(self, now: float, current: int, wanted: int) -> int:
        sizes = self._sizes
        while sizes and sizes[0][0] <= now - UP_PERIOD_S:
            sizes.popleft()
        before = min([current, *(n for _, n in sizes)])
        sizes.append((now, current))
        return min(wanted, max(2 * before, before + UP_STEP))
