"""Autoscaling on the length of the queue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from simulator.core.options import Range, read_options
from simulator.scaling.hpa import Hpa, HpaOptions
from simulator.scaling.scaler import SCALERS, OptionValue, Scaler, Surroundings, View


@dataclass(frozen=True, slots=True)
class Options(HpaOptions):
    target_requests: Annotated[float, Range(0.001)] = 8.0


@SCALERS.register("queue")
class OnQueue(Scaler):
    """Requests in the system per replica, waiting and running, held at ``target_requests`` (reactive).

    Decides: ceil(requests / target_requests) replicas, with the HPA's tolerance, stabilisation windows and pace.
    Why it helps: requests in flight follow the load at once, whatever their lengths; it is what Knative scales on, and
        vllm:num_requests_running + vllm:num_requests_waiting in KEDA's Prometheus scaler.
    Limits: reacts after the load has come, by at least a cold start; the right target depends on lengths and SLO.
    Reference: Kubernetes HPA and KEDA, see ``hpa.py``; Knative Pod Autoscaler's concurrency target.
    """

    def __init__(self, around: Surroundings, options: Mapping[str, OptionValue]) -> None:
        self._options = read_options(Options, "queue", options, "autoscaler")
        self._hpa = [Hpa(group, self._options) for group in around.groups]

    def desired(self, view: View) -> Sequence[int]:
        found = []
        for hpa, group in zip(self._hpa, view.groups, strict=True):
            requests = group.waiting + group.running
            target = self._options.target_requests
            found.append(hpa.recommend(view.now, group.target, requests, target, busy=requests > 0))
        return found
