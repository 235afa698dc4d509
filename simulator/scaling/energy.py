"""As many replicas as cost the least energy while the SLO is kept."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from simulator.core.errors import PolicyError
from simulator.core.options import Range, read_options
from simulator.scaling.scaler import SCALERS, OptionValue, Scaler, Surroundings, View
from simulator.scaling.slo_clock import CLOCKS, SloOptions
from simulator.scaling.steady import Load, load_of, steady


@dataclass(frozen=True, slots=True)
class Options(SloOptions):
    """window_s: planned for the largest load of so long."""

    window_s: Annotated[float, Range(0)] = 600.0


@SCALERS.register("energy")
class OnEnergy(Scaler):
    """Per group, the number of replicas, each at its best clock, that draws least and keeps the SLO.

    Decides: for every number of replicas and every clock the profile tells TPOT, TTFT and power under the largest load
        of the last ``window_s`` times ``headroom``; the pair with the least power of all replicas together, idle GPUs
        included. No pair keeps the SLO: all of them.
    Why it helps: a replica that is not there draws nothing; one more may let all run at a lower clock.
    Limits: goes with clock controller slo-clock, which sets the clocks in between. Reacts to load, does not forecast.
        Parallel sizes stay as they are; DynamoLLM changes them, too.
    Reference: Stojkovic et al., DynamoLLM, HPCA 2025 (arXiv:2408.00741), its cluster manager.
    """

    def __init__(self, around: Surroundings, options: Mapping[str, OptionValue]) -> None:
        self._options = read_options(Options, "energy", options, "autoscaler")
        self._around = around
        self._seen: list[deque[tuple[float, Load]]] = [deque() for _ in around.groups]
        for group in around.groups:
            if group.profile is None:
                raise PolicyError(
                    f"autoscaler 'energy' has no profile of group {group.name}.",
                    remedy="Set cluster.clocks, so that its power is known.",
                )

    def desired(self, view: View) -> Sequence[int]:
        return [self._one(index, view) for index in range(len(view.groups))]

    def _one(self, index: int, view: View) -> int:
        facts, group, seen = self._around.groups[index], view.groups[index], self._seen[index]
        profile, options = facts.profile, self._options
        assert profile is not None
        seen.append((view.now, load_of(group, profile, self._around.interval_s)))
        while seen[0][0] < view.now - options.window_s:
            seen.popleft()
        load = max((load for _, load in seen), key=lambda load: (load.decode_tokens_per_s, load.prompt_tokens_per_s))
        load = load.times(options.headroom)
        best, least = facts.max_replicas, float("inf")
        for replicas in range(max(facts.min_replicas, 1), facts.max_replicas + 1):
            for clock in CLOCKS:
                found = steady(load, replicas, clock, profile)
                if found is None or found.tpot_s > options.margin * options.tpot_s:
                    continue
                if found.ttft_s <= options.margin * options.ttft_s and replicas * found.watts < least:
                    best, least = replicas, replicas * found.watts
        return best
