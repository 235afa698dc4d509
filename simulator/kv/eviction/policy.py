"""What an eviction policy of a block cache is, and the register of those that ship."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

from simulator.core.registry import Registry


class Eviction(Protocol):
    """A cache of ``capacity`` equal blocks that decides what to forget. One file per policy.

    Blocks are ids that name themselves and everything before them in their prompt. Within a prompt they are shown from
    the last to the first, so that recency alone forgets a prompt from its end: a block without those before it is of
    no use. ``position`` is the block's place in its prompt, ``parent`` the id before it (-1: it is the first).
    """

    needs_future: ClassVar[bool] = False
    """Whether ``access`` must be told when the block comes next: for offline optima only."""
    needs_places: ClassVar[bool] = False
    """Whether ``position`` and ``parent`` matter."""

    def __init__(self, capacity: int) -> None:
        """capacity: blocks, at least 1."""
        ...

    def __contains__(self, block: int) -> bool: ...

    def __len__(self) -> int: ...

    def access(self, block: int, position: int, parent: int, next_use: int) -> bool:
        """The block is used, and kept if the policy wants it. True: it was there.

        next_use: number of the access that uses it next; only for policies with ``needs_future``.
        """
        ...


EVICTIONS: Registry[type[Eviction]] = Registry("eviction policy")


def evictions(names: Sequence[str]) -> list[str]:
    """The named policies, or all. Raises PolicyError for an unknown one."""
    for name in names:
        EVICTIONS.get(name)
    return list(names or EVICTIONS.names())
