"""What a controller of clocks is, and the register of those that ship."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from simulator.core.registry import Registry
from simulator.scaling.scaler import OptionValue, Surroundings, View


@dataclass(frozen=True, slots=True)
class Order:
    """Lock the core clock of a group's GPUs at a share of its maximum; 1: no lock. It takes effect ``after_s``."""

    group: int
    clock: float
    after_s: float = 0.0
    why: str = ""


class ClockController(Protocol):
    """Decides at which clock each group runs. Derive from this class; one file per policy."""

    def __init__(self, around: Surroundings, options: Mapping[str, OptionValue]) -> None: ...

    def orders(self, view: View) -> Sequence[Order]:
        """What is to change; groups that are not named stay as they are, or as ordered before."""
        ...


CONTROLLERS: Registry[type[ClockController]] = Registry("clock controller")
