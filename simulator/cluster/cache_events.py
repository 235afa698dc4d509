"""From a replica's prefix cache to the routers' index: changes are kept until they are asked for."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.kv.pool import BlockPool
from simulator.kv.prefix import PrefixCache
from simulator.routing.prefix_index import PrefixIndex


class CacheEvents:
    """vLLM's ``BlockStored`` and ``BlockRemoved`` events of one engine, the last one of each block."""

    def __init__(self, pool: BlockPool, replica: int, index: PrefixIndex | None, *, publishes: bool = True) -> None:
        """publishes: the pool itself tells of its blocks."""
        self._replica = replica
        self._pool = pool
        self._index = index
        self._changes: dict[int, bool] = {}
        if publishes and isinstance(pool, PrefixCache):
            pool.publish(self.stored, self.removed)

    def stored(self, ids: Sequence[int]) -> None:
        self._changes.update(dict.fromkeys(ids, True))

    def removed(self, ids: Sequence[int]) -> None:
        changes = self._changes
        for block in ids:  # mostly one
            changes[block] = False

    def forget(self) -> None:
        """The engine is gone, and its cache with it."""
        self._changes.clear()
        if self._index is not None and isinstance(self._pool, PrefixCache):
            self._index.clear(self._replica)

    def deliver(self) -> None:
        """Bring the index up to date."""
        if self._changes and self._index is not None:
            self._index.add(self._replica, [block for block, held in self._changes.items() if held])
            self._index.remove(self._replica, [block for block, held in self._changes.items() if not held])
            self._changes.clear()


class RankCacheEvents(CacheEvents):
    """The replica holds a block as long as one of its ranks does."""

    def __init__(self, pools: Sequence[BlockPool], replica: int, index: PrefixIndex | None) -> None:
        super().__init__(pools[0], replica, index, publishes=False)
        caches = [pool for pool in pools if isinstance(pool, PrefixCache)]
        self._held: list[set[int]] = [set() for _ in caches]  # by rank
        for held, cache in zip(self._held, caches, strict=True):
            rank = _Rank(self, held)
            cache.publish(rank.stored, rank.removed)

    def removed_from_one(self, ids: Sequence[int]) -> None:
        self.removed([block for block in ids if not any(block in held for held in self._held)])


class _Rank:
    """What one rank holds."""

    def __init__(self, events: RankCacheEvents, held: set[int]) -> None:
        self._events = events
        self._held = held

    def stored(self, ids: Sequence[int]) -> None:
        self._held.update(ids)
        self._events.stored(ids)

    def removed(self, ids: Sequence[int]) -> None:
        self._held.difference_update(ids)
        self._events.removed_from_one(ids)
