"""Deficit round robin between tenants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from simulator.core.options import Range, read_options
from simulator.scheduling.args import EngineArgs
from simulator.scheduling.fair import Fair, Fairness
from simulator.scheduling.policy import POLICIES
from simulator.scheduling.request import Request
from simulator.scheduling.state import EngineState


@dataclass(frozen=True, slots=True)
class DrrOptions(Fairness):
    """quantum: weighted tokens that a tenant gets in each round, times its weight."""

    quantum: Annotated[float, Range(1)] = 1000.0


@POLICIES.register("drr")
class Drr(Fair):
    """Deficit round robin: tenants take turns, each until its allowance is spent.

    Decides: a tenant whose turn it is has requests admitted while its deficit counter is positive; prompts count as
    they are admitted (``input_weight``), output tokens as they are made (``output_weight``), so that a counter may go
    far below zero. Then it is the next one's turn; when nobody's is positive, all who wait get ``quantum`` times
    its weight, as many rounds as it takes.
    Why it helps: fairness of service to tenants in the long run at constant cost per decision, whatever their requests
    look like.
    Limits: coarser than ``vtc`` by up to a quantum, which it becomes for a small one. Unlike in networks, the
    cost of a request is not known when it is admitted, so it is paid afterwards. A tenant that leaves loses what it did
    not use and keeps its debt.
    Reference: Shreedhar and Varghese, IEEE/ACM ToN 4 (1996), 10.1109/90.502236; adapted to unknown lengths as in the
    appendix of Sheng et al., OSDI 2024 (arXiv:2401.00588).
    """

    def __init__(self, args: EngineArgs) -> None:
        options = read_options(DrrOptions, args.policy, args.options)
        super().__init__(args, options)
        self.quantum = options.quantum

    def prepare(self, state: EngineState) -> None:
        super().prepare(state)
        self.granted: dict[int, float] = {}
        self.round: dict[int, float] = {}  # what the next admission grants: a look alone moves no allowance
        self.current = 0  # whose turn it is, or was

    def deficit(self, tenant: int) -> float:
        account = self.accounts[tenant]
        spent = self.input_weight * account.inputs + self.output_weight * account.outputs
        return self.granted.get(tenant, 0.0) - spent

    def choose(self, tenants: list[int]) -> int:
        """The current tenant while it has an allowance, then the next one that has."""
        order = sorted(tenants, key=lambda tenant: (tenant < self.current, tenant))
        self.round = {}
        if all(self.deficit(tenant) <= 0 for tenant in order):
            share = {tenant: self.quantum * self.accounts[tenant].weight for tenant in order}
            rounds = min(int(-self.deficit(tenant) // share[tenant]) + 1 for tenant in order)
            self.round = {tenant: rounds * share[tenant] for tenant in order}
            order = sorted(tenants, key=lambda tenant: (tenant <= self.current, tenant))
        return next(tenant for tenant in order if self.deficit(tenant) + self.round.get(tenant, 0.0) > 0)

    def takes(self, request: Request) -> Request:
        for tenant, grant in self.round.items():
            self.granted[tenant] = self.granted.get(tenant, 0.0) + grant
        self.current = request.tenant
        return super().takes(request)

    def returns(self, tenant: int, waiting: list[int]) -> None:
        unused = self.deficit(tenant)
        if unused > 0:
            self.granted[tenant] = self.granted.get(tenant, 0.0) - unused
