"""Spot instances, reclaimed at random."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from simulator.core.options import Range, read_options
from simulator.faults.source import FAULTS, Faults, Loss, OptionValue, Surroundings, chosen_group


@dataclass(frozen=True, slots=True)
class Options:
    mean_life_s: Annotated[float, Range(1e-3)] = 4 * 3600.0
    mean_away_s: Annotated[float, Range(0)] = 1800.0
    warning_s: Annotated[float, Range(0)] = 120.0


@FAULTS.register("spot")
class Spot(Faults):
    """Every replica is reclaimed after an exponential life of mean ``mean_life_s``, ``warning_s`` after a notice.

    Decides: when each replica (of ``group``, where it is given) is reclaimed and after what time (exponential,
        ``mean_away_s``) another instance can be had in its place.
    Why it helps: the price of spot against what its interruptions cost.
    Limits: independent; real reclaims come in groups (replay a trace with ``spot-trace``).
    Reference: notices of 2 minutes on AWS EC2 and of 30 s on Google Cloud and Azure (their spot documentation);
        SpotServe (arXiv:2311.15566).
    """

    def __init__(self, around: Surroundings, options: Mapping[str, OptionValue]) -> None:
        self._group, rest = chosen_group("spot", around, options)
        self._options = read_options(Options, "spot", rest, "fault source")
        self._around = around
        self._streams: dict[int, np.random.Generator] = {}

    def loss(self, group: int, slot: int) -> Loss | None:
        if self._group not in {None, group}:
            return None
        rng = self._streams.get(slot)
        if rng is None:
            rng = self._streams[slot] = self._around.stream(f"faults.spot.{slot}")
        chosen = self._options
        after, down = rng.exponential((chosen.mean_life_s, chosen.mean_away_s)).tolist()
        return Loss(after, "reclaim", chosen.warning_s, down)
