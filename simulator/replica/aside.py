"""An engine beside whose steps tiers load and look ahead."""

from __future__ import annotations

from math import inf
from typing import Any

from simulator.replica.engine import Engine
from simulator.replica.steps import Action
from simulator.scheduling.asides import Asides
from simulator.scheduling.request import Request


class AsideEngine(Engine):
    """An ``Engine`` whose spans end, and whose sleep does, when the KV of a request that waits aside has come.

    Arrivals are shown to the tiers with all that the steps before them have pushed out of the GPU's cache.
    """

    __slots__ = ("_asides",)

    def __init__(self, *args: Any, **options: Any) -> None:
        """As ``Engine``'s."""
        super().__init__(*args, **options)
        self._asides: Asides | None = None

    def connect(self, asides: Asides) -> None:
        """Once, when the tiers are there."""
        self._asides = asides
        self._actions.append(asides.land)

    def add(self, request: Request, now: float) -> bool:
        assert self._asides is not None and self.state.tiers is not None
        if self._asides.window:
            self.settle_cache(now)
            self.state.tiers.begin(now, now)
        self._wake_up(now)
        return super().add(request, now)

    def at_next_step(self, action: Action, now: float) -> bool:
        self._wake_up(now)
        return super().at_next_step(action, now)

    def _wake_up(self, now: float) -> None:
        """An engine that only waits for KV takes what comes at once."""
        if not self._pending and self.busy_until <= now:
            self.wake_time = inf

    def run_until(self, time: float) -> None:
        assert self._asides is not None
        while True:
            super().run_until(time)
            if self.wake_time < inf or not self._asides.loading:
                return
            self.wake_time = self._asides.next_load

    def _span(self, begin: float) -> float:
        asides = self._asides
        assert asides is not None
        self.wake_time = super()._span(begin)
        if self._pending > 1:
            if asides.stuck:  # whether it still wants to load is asked at every step
                self._pending = 1
                self.wake_time = self._end(self._steps_done + 1 - self._lead)
            elif asides.loading:
                self._cut(asides.next_load)
        return self.wake_time
