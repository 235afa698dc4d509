"""Earliest deadline first, by service class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from simulator.core.options import Range, numbers, read_options
from simulator.scheduling.args import EngineArgs
from simulator.scheduling.ordered import Ordered, Rank
from simulator.scheduling.policy import POLICIES
from simulator.scheduling.request import Request


@dataclass(frozen=True, slots=True)
class EdfOptions:
    """deadlines_s: TTFT that each service class is promised, such as "0.5, 5", in alphabetical order of the trace's
    ``slo_class`` labels. default_deadline_s: for classes beyond those, and for requests without one."""

    deadlines_s: str = ""
    default_deadline_s: Annotated[float, Range(0)] = 1.0


@POLICIES.register("edf")
class Edf(Ordered):
    """Earliest deadline first: the waiting request whose first token is due first is admitted first.

    Decides: as ``vllm``, with the waiting queue sorted by ``arrival`` plus the deadline of the request's service class;
    out of blocks, the latest deadline gives way and is recomputed.
    Why it helps: if any order of equal, interruptible jobs meets all deadlines, this one does; requests that can wait
    make way for those that cannot.
    Limits: with one class it is first come, first served; under overload it serves who is late already and fails more
    requests than it has to (the domino effect; admission control helps). Tokens after the first have no deadline.
    Reference: Liu and Layland, Journal of the ACM 20 (1973), 10.1145/321738.321743.
    """

    speculates = True

    def __init__(self, args: EngineArgs) -> None:
        super().__init__(args)
        options = read_options(EdfOptions, args.policy, args.options)
        self.deadlines = numbers(f"engine policy {args.policy!r}", "deadlines_s", options.deadlines_s)
        self.default = options.default_deadline_s

    def rank(self, request: Request) -> Rank:
        code = request.slo_class
        return (request.arrival + (self.deadlines[code] if 0 <= code < len(self.deadlines) else self.default),)
