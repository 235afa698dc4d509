"""One slower place for KV blocks: what it holds, and its reads one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from math import inf
from typing import Literal

from simulator.kv.eviction import EVICTIONS, Eviction
from simulator.kv.window import Spared

Write = Literal["evict", "through"]
Place = tuple[int, int]  # position of a block in its prompt, id of the block before it
NOWHERE: Place = (0, -1)


@dataclass(frozen=True, slots=True)
class TierPlan:
    """One tier.

    capacity_bytes: of KV. bandwidth: bytes/s that one replica (or all that share it) reads, in order of asking.
    latency_s: before the first byte. write: when blocks come down: as they are computed, or as the cache forgets them.
    shared: one copy and one bandwidth for all replicas.
    """

    name: str
    capacity_bytes: float
    bandwidth: float
    latency_s: float = 0.0
    write: Write = "evict"
    eviction: str = "lru"
    shared: bool = False


class Times:
    """When blocks will be there, s, as long as that lies ahead."""

    __slots__ = ("_due", "_number", "at")

    def __init__(self) -> None:
        self.at: dict[int, float] = {}
        self._due: list[tuple[float, int, Sequence[int]]] = []
        self._number = 0

    def add(self, blocks: Sequence[int], time: float) -> None:
        self.at.update(dict.fromkeys(blocks, time))
        self._number += 1
        heappush(self._due, (time, self._number, blocks))

    def pass_to(self, time: float) -> None:
        """Nobody asks about anything before ``time`` any more."""
        due, at = self._due, self.at
        while due and due[0][0] <= time:
            for block in heappop(due)[2]:
                if at.get(block, inf) <= time:
                    del at[block]


class Tier:
    """What a tier holds, and its reads one after the other."""

    __slots__ = (
        "_blocks",
        "_capacity",
        "_coming",
        "_places",
        "_written",
        "busy_s",
        "busy_until",
        "bytes_prefetched",
        "bytes_read",
        "bytes_written",
        "hit_tokens",
        "plan",
    )

    def __init__(
        self, plan: TierPlan, block_bytes: float, places: Mapping[int, Place] | None = None, *, window: int = 0
    ) -> None:
        """block_bytes: KV of one block of the trace. places: where blocks stand, for eviction policies that ask.
        window: of waiting requests whose blocks are spared."""
        self.plan = plan
        capacity = max(1, int(plan.capacity_bytes // block_bytes))
        spares = window > 0 and plan.eviction == "lru"
        self._blocks: Eviction = Spared(capacity) if spares else EVICTIONS.get(plan.eviction)(capacity)
        self._capacity = capacity
        self._places = places
        self._written = Times()  # blocks still being computed
        self._coming = Times()  # blocks on their way from a slower tier
        self.busy_until = 0.0  # s
        self.busy_s = 0.0
        self.hit_tokens = 0.0
        self.bytes_read = 0.0  # all that was read, for whatever reason
        self.bytes_prefetched = 0.0  # of those, for a faster tier
        self.bytes_written = 0.0

    def pass_to(self, time: float) -> None:
        """Nobody asks about anything before ``time`` (s) any more."""
        self._written.pass_to(time)
        self._coming.pass_to(time)

    # -- what is here ------------------------------------------------------------------------------------------

    def __contains__(self, block: int) -> bool:
        """Whether the block is here, or will be as soon as it is computed or has come up."""
        return block in self._blocks

    def holds(self, block: int, now: float) -> bool:
        """Whether the block can be read at ``now``."""
        return block in self._blocks and self._written.at.get(block, 0.0) <= now

    def held(self, blocks: Sequence[int], now: float) -> bytes:
        """1 for each block that ``holds``, else 0."""
        found = self._blocks.held(blocks)
        late = self._written.at
        if late:
            here = zip(found, blocks, strict=True)
            found = bytes([held and late.get(block, 0.0) <= now for held, block in here])
        return found

    def there_at(self, blocks: Sequence[int]) -> float:
        """When the last of these blocks, which the tier holds, has come up from a slower one, s; 0: all have."""
        coming = self._coming.at
        if not coming:
            return 0.0
        return max([coming.get(block, 0.0) for block in blocks], default=0.0)

    # -- what comes and goes -----------------------------------------------------------------------------------

    def store(self, blocks: Sequence[int], block_bytes: float, ready: float | None = None) -> None:
        """Copy blocks down, the last of their prompt first; ready: when they will be there, s (None: they are)."""
        if ready is not None:
            self._written.add([block for block in blocks if block not in self._blocks], ready)
        self.bytes_written += block_bytes * self._use(blocks)

    def receive(self, blocks: Sequence[int], block_bytes: float, ready: float) -> None:
        """Blocks come up from a slower tier until ``ready``, s; the last of their prompt first."""
        self._coming.add(blocks, ready)
        self.bytes_written += block_bytes * self._use(blocks)

    def touch(self, blocks: Iterable[int]) -> None:
        """Those of the blocks that are here are used; the last of their prompt first."""
        self._use([block for block in blocks if block in self._blocks])

    def _use(self, blocks: Sequence[int]) -> int:
        """How many of them were not here."""
        places = self._places
        if places is None:
            return self._blocks.access_all(blocks)
        access = self._blocks.access
        return sum(not access(block, *places.get(block, NOWHERE), 0) for block in blocks)

    # -- who waits ---------------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """Blocks that may come up without pushing out one that somebody waits for."""
        return self._blocks.room if isinstance(self._blocks, Spared) else self._capacity

    def expect(self, blocks: Sequence[int]) -> None:
        """A waiting request has come near that will use these blocks."""
        if isinstance(self._blocks, Spared):
            self._blocks.expect(blocks)

    def served(self, blocks: Sequence[int]) -> None:
        """It waits no more."""
        if isinstance(self._blocks, Spared):
            self._blocks.served(blocks)

    # -- reading -----------------------------------------------------------------------------------------------

    def seconds(self, now: float, num_bytes: float) -> float:
        """From ``now`` on until so many bytes would be read, the queue included."""
        return max(self.busy_until - now, 0.0) + self.plan.latency_s + num_bytes / self.plan.bandwidth

    def read(self, begin: float, num_bytes: float) -> float:
        """When ``num_bytes`` asked for at ``begin`` are there, s."""
        start = max(begin, self.busy_until)
        seconds = self.plan.latency_s + num_bytes / self.plan.bandwidth
        self.busy_until = start + seconds
        self.busy_s += seconds
        self.bytes_read += num_bytes
        return self.busy_until
