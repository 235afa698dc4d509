"""Routing by service class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from simulator.core.errors import PolicyError
from simulator.core.options import Range, read_options
from simulator.routing.fleet import Ints, least
from simulator.routing.router import ROUTERS, Needs, Options, Router, Surroundings
from simulator.scheduling.request import Request
from traces.trace import Trace


@dataclass(frozen=True, slots=True)
class Classes:
    """urgent: label of the trace's slo_class column; empty: the rows with the smallest priority are urgent.
    reserved: share of the replicas that only urgent requests may use.
    spill: urgent requests use the other replicas as well.
    """

    urgent: str = ""
    reserved: Annotated[float, Range(0, 1)] = 0.5
    spill: bool = True


@ROUTERS.register("slo-class")
class SloClass(Router):
    """Some replicas for urgent requests alone, the least loaded of its class's replicas for each request.

    Decides: the first ``reserved`` share of the replicas (by index, rounded) serves urgent requests only. Within what
    its class may use, the candidate with the fewest requests in flight; all candidates, where none of those is open.
    Why it helps: long batch work cannot delay interactive requests on replicas that it never reaches.
    Limits: reserved replicas idle while others queue. Two classes; to order classes on one replica instead, give the
    trace priorities and the engines ``scheduling_policy: priority``.
    Reference: criticality in the Kubernetes Gateway API Inference Extension; Patke et al., QLM, SoCC 2024
    (arXiv:2407.00047).
    """

    needs = Needs.IN_FLIGHT

    def __init__(self, around: Surroundings, options: Options) -> None:
        chosen = read_options(Classes, "slo-class", options, "router")
        self._fleet = around.fleet
        self._urgent = _urgent(around.trace, chosen.urgent)
        self._reserved = round(chosen.reserved * around.fleet.size)
        self._spill = chosen.spill

    def route(self, request: Request, candidates: Ints, now: float) -> int:
        del now
        first_shared = int(np.searchsorted(candidates, self._reserved))
        mine = candidates[first_shared:]
        if self._urgent[request.row]:
            mine = candidates if self._spill else candidates[:first_shared]
        return least(self._fleet.in_flight, mine if len(mine) else candidates)


def _urgent(trace: Trace, label: str) -> NDArray[np.bool_]:
    if label:
        if trace.slo_class is None or label not in trace.slo_class.names:
            known = "it has none" if trace.slo_class is None else f"it has {', '.join(trace.slo_class.names)}"
            raise PolicyError(
                f"router 'slo-class': the trace has no slo_class {label!r}.",
                remedy=f"Name one of its classes: {known}.",
            )
        return np.asarray(trace.slo_class.codes == trace.slo_class.names.index(label))
    if trace.priority is None:
        raise PolicyError(
            "router 'slo-class': the trace has neither priorities nor a class named by the option 'urgent'.",
            remedy="Set urgent to a label of its slo_class column, or use another router.",
        )
    return np.asarray(trace.priority == (trace.priority.min() if len(trace) else 0))
