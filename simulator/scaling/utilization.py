"""Autoscaling on how full the batches are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from simulator.core.options import Range, read_options
from simulator.scaling.hpa import Hpa, HpaOptions
from simulator.scaling.scaler import SCALERS, OptionValue, Scaler, Surroundings, View


@dataclass(frozen=True, slots=True)
class Options(HpaOptions):
    target: Annotated[float, Range(0.001, 1)] = 0.5


@SCALERS.register("utilization")
class OnUtilization(Scaler):
    """Share of the batch slots (``max_num_seqs``) in use, held at ``target`` (reactive).

    Decides: ceil(running / (target x max_num_seqs)) replicas, as the HPA does. The share of time in which a GPU
        computes says nothing: it is 100 % from the first request on.
    Why it helps: headroom in slots is headroom for bursts.
    Limits: blind to a queue that waits for KV blocks and not for slots; saturates at 1 / target times as many.
    Reference: Kubernetes HPA, see ``hpa.py``.
    """

    def __init__(self, around: Surroundings, options: Mapping[str, OptionValue]) -> None:
        self._options = read_options(Options, "utilization", options, "autoscaler")
        self._hpa = [Hpa(group, self._options) for group in around.groups]
        self._slots = [group.max_num_seqs for group in around.groups]

    def desired(self, view: View) -> Sequence[int]:
        found = []
        for hpa, group, slots in zip(self._hpa, view.groups, self._slots, strict=True):
            busy = group.running + group.waiting > 0
            found.append(hpa.recommend(view.now, group.target, group.running / slots, self._options.target, busy=busy))
        return found
