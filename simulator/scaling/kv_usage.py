"""Autoscaling on the usage of the KV caches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from simulator.core.options import Range, read_options
from simulator.scaling.hpa import Hpa, HpaOptions
from simulator.scaling.scaler import SCALERS, OptionValue, Scaler, Surroundings, View


@dataclass(frozen=True, slots=True)
class Options(HpaOptions):
    target: Annotated[float, Range(0.001, 1)] = 0.6


@SCALERS.register("kv-usage")
class OnKvUsage(Scaler):
    """Mean share of the KV blocks in use, held at ``target`` (reactive).

    Decides: ceil(ready x mean usage / target) replicas, as the HPA does with vllm:kv_cache_usage_perc.
    Why it helps: memory is what ends a batch's growth; past it requests queue and are preempted.
    Limits: short requests saturate the compute long before the cache; usage cannot show how much more than full it is.
    Reference: Kubernetes HPA, see ``hpa.py``; Llumnix (arXiv:2406.03243) scales on freeness, a relative of it.
    """

    def __init__(self, around: Surroundings, options: Mapping[str, OptionValue]) -> None:
        self._options = read_options(Options, "kv-usage", options, "autoscaler")
        self._hpa = [Hpa(group, self._options) for group in around.groups]

    def desired(self, view: View) -> Sequence[int]:
        found = []
        for hpa, group in zip(self._hpa, view.groups, strict=True):
            busy = group.running + group.waiting > 0
            # Replicas that start have no usage yet and count nothing, as pods without metrics do for the HPA.
            total = group.kv_usage * group.ready
            found.append(hpa.recommend(view.now, group.target, total, self._options.target, busy=busy))
        return found
