"""What every run of a plan needs to know: the question, and what has been run for it already."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.planning.change import Change
from simulator.planning.ledger import Ledger
from simulator.planning.load import Design
from simulator.planning.probe import Bench
from simulator.planning.spec import Plan


@dataclass(frozen=True)
class Study:
    """A plan at work. Goes to other processes, where its ledger is that of the same file."""

    plan: Plan
    ledger: Ledger

    def bench(self, design: Design, change: Change | None = None) -> Bench:
        """Raises UserErrors where the design cannot be built."""
        assert design.scenario is not None
        return Bench(design.scenario, self.ledger, change)

    def seeds(self, design: Design) -> tuple[int, ...]:
        """The same for all designs: common random numbers. One where a seed would not change the requests of a file."""
        assert design.scenario is not None
        first, workload = design.scenario.seed, design.scenario.workload
        drawn = workload.trace is None or any(step.arrivals or step.sample for step in workload.transforms)
        return (first,) if not drawn else tuple(range(first, first + self.plan.replications))

    def unit_cost(self, gpus: int, usd: float | None) -> float | None:
        """What one copy counts: USD per hour (None: no price is known), GPUs, or 1."""
        if self.plan.find in ("cheapest", "lowest-bill") or self.plan.by == "rate-per-usd":
            return usd
        return float(gpus) if self.plan.find == "fewest-gpus" or self.plan.by == "rate-per-gpu" else 1.0

    def limit(self, gpus: int, usd: float | None) -> int:
        """Most copies that the budget allows."""
        plan, limit = self.plan, self.plan.max_copies
        if plan.max_gpus is not None:
            limit = min(limit, plan.max_gpus // gpus)
        if plan.max_usd_per_hour is not None:
            limit = min(limit, 0 if usd is None else int(plan.max_usd_per_hour / usd + 1e-9)) if usd != 0 else limit
        return limit

    def price(self, cost: float) -> str:
        """What is minimised, in words."""
        return f"${cost:,.2f}/h" if self.plan.find != "fewest-gpus" else f"{cost:g} GPUs"
