"""What an eviction policy of a block cache is, and the register of those that ship."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import ClassVar, Protocol

from simulator.core.registry import Registry
from simulator.kv.eviction.runs import Runs


class Eviction(Protocol):
    """A cache of ``capacity`` equal blocks that decides what to forget. One file per policy.

    Blocks are ids that name themselves and everything before them in their prompt. Within a prompt they are shown from
    the last to the first, so that recency alone forgets a prompt from its end: a block without those before it is of
    no use. ``position`` is the block's place in its prompt, ``parent`` the id before it (-1: it is the first).
    """

    needs_future: ClassVar[bool] = False
    """Whether ``access`` must be told when the block comes next, and ``last_waiting`` be kept: not in tiers."""
    needs_places: ClassVar[bool] = False
    """Whether ``position`` and ``parent`` matter."""
    runs: ClassVar[type[Runs] | None] = None
    """The same policy on runs of blocks, much faster on long prompts; None: there is no such form. Not inherited."""
    last_waiting: int = 0
    """Number of the last request that waits; only for policies with ``needs_future``."""

    def __init__(self, capacity: int) -> None:
        """capacity: blocks, at least 1."""
        ...

    def __contains__(self, block: int) -> bool: ...

    def __len__(self) -> int: ...

    def access(self, block: int, position: int, parent: int, next_use: int) -> bool:
        """The block is used, and kept if the policy wants it. True: it was there.

        next_use: number of the request that uses it next; only for policies with ``needs_future``.
        """
        ...

    def access_all(self, blocks: Iterable[int]) -> int:
        """One after the other, where neither places nor the future matter; how many were not there."""
        return sum(not self.access(block, 0, -1, 0) for block in blocks)

    def held(self, blocks: Sequence[int]) -> bytes:
        """1 for each block that is there, else 0."""
        return bytes(map(self.__contains__, blocks))


EVICTIONS: Registry[type[Eviction]] = Registry("eviction policy")


def evictions(names: Sequence[str]) -> list[str]:
    """The named policies, or all. Raises PolicyError for an unknown one."""
    for name in names:
        EVICTIONS.get(name)
    return list(names or EVICTIONS.names())
