"""Virtual token counters."""

from __future__ import annotations

from simulator.core.options import read_options
from simulator.scheduling.args import EngineArgs
from simulator.scheduling.fair import Fair, Fairness
from simulator.scheduling.policy import POLICIES
from simulator.scheduling.state import EngineState


@POLICIES.register("vtc")
class Vtc(Fair):
    """Virtual token counter: the tenant that has been served least is admitted next.

    Decides: every tenant has a counter, to which ``input_weight`` times the prompt is added as a request is admitted
    and ``output_weight`` for each token made, divided by the tenant's weight. The first request of the tenant with the
    smallest counter is admitted while it fits. A tenant that comes back is lifted to the smallest counter of those that
    wait (to that of the last one that was admitted where nobody waits): what it did not use is not saved up.
    Why it helps: between tenants that always have requests waiting, service differs by no more than
    ``2 max(input_weight x longest prompt, output_weight x KV cache tokens)``, for however long, whatever they send; and
    unlike a rate limit it leaves no capacity unused.
    Limits: fair over time, not at every moment: admitted requests are not preempted for fairness, which is where the
    bound comes from. A counter belongs to one replica. Who waits behind the smallest counter waits for it to fit.
    Reference: Sheng et al., OSDI 2024 (arXiv:2401.00588), algorithms 2 and 3 (weighted: 4.3), theorem 4.4.
    """

    def __init__(self, args: EngineArgs) -> None:
        super().__init__(args, read_options(Fairness, args.policy, args.options))

    def prepare(self, state: EngineState) -> None:
        super().prepare(state)
        self.lifts: dict[int, float] = {}
        self.last: int | None = None  # the tenant whose last waiting request was admitted last

    def counter(self, tenant: int) -> float:
        account = self.accounts[tenant]
        service = self.input_weight * account.inputs + self.output_weight * account.outputs
        return service / account.weight + self.lifts.get(tenant, 0.0)

    def choose(self, tenants: list[int]) -> int:
        return min(tenants, key=lambda tenant: (self.counter(tenant), self.accounts[tenant].queue[0].arrival, tenant))

    def returns(self, tenant: int, waiting: list[int]) -> None:
        others = waiting or ([] if self.last is None else [self.last])
        if others:
            behind = min(map(self.counter, others)) - self.counter(tenant)
            if behind > 0:
                self.lifts[tenant] = self.lifts.get(tenant, 0.0) + behind

    def empties(self, tenant: int) -> None:
        self.last = tenant
