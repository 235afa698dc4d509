"""What a source of faults is, and the register of those that ship."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from simulator.core.errors import PolicyError
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


def chosen_group(
    policy: str, around: Surroundings, options: Mapping[str, OptionValue]
) -> tuple[int | None, dict[str, OptionValue]]:
    """(index of the group that option ``group`` names, None without; the other options). Raises PolicyError."""
    rest = dict(options)
    wanted = rest.pop("group", None)
    if wanted is None:
        return None, rest
    if wanted not in around.groups:
        message = f"fault source {policy!r}: there is no group {wanted!r}."
        raise PolicyError(message, remedy=f"Groups: {', '.join(around.groups)}.")
    return around.groups.index(str(wanted)), rest
