"""Autoscalers on the clock: shown the cluster every interval, and done as they say."""

from __future__ import annotations

from collections.abc import Mapping

from simulator.cluster.clock import TRANSFER
from simulator.cluster.elastic import OptionValue, ScalingPlan
from simulator.cluster.lifecycle import Lifecycle
from simulator.cluster.watch import Watch, facts
from simulator.core.errors import PolicyError
from simulator.scaling import SCALERS, Scaler, Surroundings, View


class Autoscaler:
    """Asks every ``interval_s`` the policy of all groups, and those of groups that have one of their own."""

    def __init__(self, lifecycle: Lifecycle, plan: ScalingPlan, watch: Watch) -> None:
        self._lifecycle, self._plan, self.watch = lifecycle, plan, watch
        lives = lifecycle.plan.groups
        known = [
            facts(group, life.min_replicas, life.max_replicas, life.initial, life.cold_start_s)
            for group, life in zip(lifecycle.groups, lives, strict=True)
        ]
        self._policies: list[tuple[str, Scaler, list[int]]] = []  # (name, policy, its groups)

        def add(name: str, options: Mapping[str, OptionValue], groups: list[int]) -> None:
            around = Surroundings(tuple(known[g] for g in groups), plan.interval_s)
            self._policies.append((name, SCALERS.get(name)(around, options), groups))

        shared = [g for g, life in enumerate(lives) if life.scaling is None]
        if shared:
            add(plan.policy, plan.options, shared)
        for g, life in enumerate(lives):
            if life.scaling is not None:
                add(*life.scaling, [g])
        self._ticks = 0

    def begin(self) -> None:
        self._ticks += 1
        at = self._ticks * self._plan.interval_s
        self._lifecycle.clock.at(at, TRANSFER, lambda _: self._tick(at))

    def _tick(self, now: float) -> None:
        if self._lifecycle.over:
            return
        view = self.watch.look(now)
        wanted = {g: n for name, policy, groups in self._policies for g, n in self._ask(name, policy, groups, view)}
        for group, replicas in sorted(wanted.items()):
            self._lifecycle.set_target(group, replicas, now)
        self.begin()

    def _ask(self, name: str, policy: Scaler, groups: list[int], view: View) -> list[tuple[int, int]]:
        desired = list(policy.desired(View(view.now, tuple(view.groups[g] for g in groups))))
        if len(desired) != len(groups) or not all(isinstance(n, int) and n >= 0 for n in desired):
            names = ", ".join(self._lifecycle.groups[g].name for g in groups)
            raise PolicyError(
                f"autoscaler {name!r} wants {desired} replicas.",
                remedy=f"It must answer with one whole number, 0 or more, per group ({names}).",
            )
        return list(zip(groups, desired, strict=True))
