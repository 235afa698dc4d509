"""Priority with aging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from simulator.core.options import Range, read_options
from simulator.scheduling.args import EngineArgs
from simulator.scheduling.ordered import Ordered, Rank
from simulator.scheduling.policy import POLICIES
from simulator.scheduling.request import Request


@dataclass(frozen=True, slots=True)
class AgingOptions:
    """aging_s: seconds of waiting that make up for one level of priority; 0: priorities count for nothing."""

    aging_s: Annotated[float, Range(0)] = 10.0


@POLICIES.register("aging")
class Aging(Ordered):
    """Priority with aging: waiting long enough makes up for a lower priority.

    Decides: as ``vllm``, with the waiting queue sorted by ``arrival + aging_s x priority`` (smaller priority first, as
    in vLLM). All requests age alike, so their order never changes while they wait.
    Why it helps: with plain priorities (``scheduling_policy: priority``) the lowest class waits for as long as others
    come; here nobody is overtaken by a request that came more than ``aging_s x (difference of priorities)`` later.
    Limits: the bound is on who overtakes, not on seconds; with a huge ``aging_s`` it is plain priority, with 0 it is
    first come, first served.
    Reference: Silberschatz et al., Operating System Concepts, 10th ed., 5.3.4; Kleinrock's delay-dependent priorities,
    Naval Research Logistics Quarterly 11 (1964), 10.1002/nav.3800110306, have the classes age at different rates.
    """

    speculates = True

    def __init__(self, args: EngineArgs) -> None:
        super().__init__(args)
        self.aging_s = read_options(AgingOptions, args.policy, args.options).aging_s

    def rank(self, request: Request) -> Rank:
        return (request.arrival + self.aging_s * request.priority,)
