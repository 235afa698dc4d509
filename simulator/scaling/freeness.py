"""Autoscaling on how free the replicas' memory is, as Llumnix does."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from simulator.core.options import Range, read_options
from simulator.scaling.scaler import SCALERS, OptionValue, Scaler, Surroundings, View


@dataclass(frozen=True, slots=True)
class Options:
    out_below_tokens: Annotated[float, Range(-1e9)] = 10.0
    in_above_tokens: Annotated[float, Range(-1e9)] = 60.0
    average_s: Annotated[float, Range(0)] = 10.0


@SCALERS.register("freeness")
class OnFreeness(Scaler):
    """Freeness of a group's replicas, held between two bounds, one replica at a time.

    Freeness is how many more tokens every running request could make before the memory is full, less what the heads
    of the queues wait for; here of all ready replicas together (``cluster.migration`` pairs replicas by their own).

    Decides: one more replica when its mean over ``average_s`` is below ``out_below_tokens``, one less above
        ``in_above_tokens``; then it looks for ``average_s`` at the new number. None ready: one more.
    Why it helps: it sees a queue that waits for blocks before requests are preempted, and with ``drain: migrate`` a
        replica that goes is empty soon instead of after its longest answer.
    Limits: memory only: replicas that compute too slowly with plenty of it are not seen. One at a time follows slowly.
    Reference: Sun et al., Llumnix, OSDI 2024 (arXiv:2406.03243), section 4.4.3. 10, 60
        and 10 s are the defaults of its repository as remembered, not looked up.
    """

    def __init__(self, around: Surroundings, options: Mapping[str, OptionValue]) -> None:
        self._options = read_options(Options, "freeness", options, "autoscaler")
        self._seen: list[deque[tuple[float, float]]] = [deque() for _ in around.groups]
        self._since = [0.0] * len(around.groups)  # s, when the number of replicas changed last

    def desired(self, view: View) -> Sequence[int]:
        return [self._one(index, view) for index in range(len(view.groups))]

    def _one(self, index: int, view: View) -> int:
        group, seen, options = view.groups[index], self._seen[index], self._options
        if not group.ready:
            return max(group.target, 1)
        seen.append((view.now, group.freeness))
        while seen[0][0] <= view.now - options.average_s and len(seen) > 1:
            seen.popleft()
        if group.starting or view.now - self._since[index] < options.average_s:
            return group.target
        mean = sum(value for _, value in seen) / len(seen)
        change = (mean < options.out_below_tokens) - (mean > options.in_above_tokens)
        if change:
            self._since[index] = view.now
            seen.clear()
        return max(group.target + change, 0)
