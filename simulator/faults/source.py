"""What a source of faults is, and the register of those that ship."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal, Protocol

import numpy as np

from simulator.core.registry import Registry

OptionValue = bool | int | float | str
Kind = Literal["failure", "reclaim"]


@dataclass(frozen=True, slots=True)
class Loss:
    """How the life of a replica ends. after_s: from its start; down_s: from then until its place can be taken again."""

    after_s: float
    kind: Kind
    warning_s: float = 0.0
    down_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Change:
    """A node comes (``up``) or goes, at an absolute time. warning_s: before it goes, its replica is told."""

    time: float
    group: int
    node: str
    up: bool
    warning_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a source is built with. stream: named random streams of the scenario's seed."""

    groups: tuple[str, ...]
    stream: Callable[[str], np.random.Generator]


class Faults(Protocol):
    """Says when replicas fail or are reclaimed. Derive from this class; one file per source."""

    def __init__(self, around: Surroundings, options: Mapping[str, OptionValue]) -> None: ...

    def loss(self, group: int, slot: int) -> Loss | None:
        """How a replica that starts now in place ``slot`` is lost; None: not by this source."""
        return None

    def changes(self) -> Sequence[Change]:
        """Nodes that come and go by a plan, in order of time. A group with any has only these nodes."""
        return ()


FAULTS: Registry[type[Faults]] = Registry("fault source")

NEVER = Loss(inf, "failure")


def group_index(names: Sequence[str], wanted: str) -> int | None:
    """Index of a group by name; '' is every group (None). Raises KeyError."""
    if not wanted:
        return None
    if wanted not in names:
        raise KeyError(wanted)
    return list(names).index(wanted)
