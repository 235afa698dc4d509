"""Failures at random times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from simulator.core.options import Range, read_options
from simulator.faults.source import FAULTS, Faults, Loss, OptionValue, Surroundings, chosen_group


@dataclass(frozen=True, slots=True)
class Options:
    mtbf_s: Annotated[float, Range(1e-3)] = 86_400.0
    mttr_s: Annotated[float, Range(0)] = 600.0


@FAULTS.register("failures")
class Failures(Faults):
    """Replicas fail without warning: mean time between failures ``mtbf_s``, to repair ``mttr_s``, both exponential.

    Decides: for each replica that starts (of ``group``, where it is given), when it fails and how long its GPUs are
        gone. Every place has a random
        stream of its own, so a change of policy leaves the failures of other places alone.
    Why it helps: shows what redundancy and quick restarts are worth.
    Limits: failures are independent; racks and switches that take several replicas along are not modelled.
    Reference: Barlow and Proschan, Mathematical Theory of Reliability (1965), ch. 2; rates in practice: one unexpected
        interruption per 3 hours of 16,384 H100 in Llama 3's training (arXiv:2407.21783, table 5), 50,000 h per GPU.
    """

    def __init__(self, around: Surroundings, options: Mapping[str, OptionValue]) -> None:
        self._group, rest = chosen_group("failures", around, options)
        self._options = read_options(Options, "failures", rest, "fault source")
        self._around = around
        self._streams: dict[int, np.random.Generator] = {}

    def loss(self, group: int, slot: int) -> Loss | None:
        if self._group not in {None, group}:
            return None
        rng = self._streams.get(slot)
        if rng is None:
            rng = self._streams[slot] = self._around.stream(f"faults.failures.{slot}")
        after, down = rng.exponential((self._options.mtbf_s, self._options.mttr_s)).tolist()
        return Loss(after, "failure", 0.0, down)
