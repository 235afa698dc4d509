"""From a replica's prefix cache to the routers' index: changes are kept until they are asked for."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.kv.pool import BlockPool
from simulator.kv.prefix import PrefixCache
from simulator.routing.prefix_index import PrefixIndex


class CacheEvents:
    """vLLM's ``BlockStored`` and ``BlockRemoved`` events of one engine, the last one of each block."""

    def __init__(self, pool: BlockPool, replica: int, index: PrefixIndex | None) -> None:
        self._replica = replica
        self._pool = pool
        self._index = index
        self._changes: dict[int, bool] = {}
        if isinstance(pool, PrefixCache):
            pool.publish(self._stored, self._removed)

    def _stored(self, ids: Sequence[int]) -> None:
        self._changes.update(dict.fromkeys(ids, True))

    def _removed(self, ids: Sequence[int]) -> None:
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
        super().__init__(pools[0], replica, index)
        self._pools = [pool for pool in pools if isinstance(pool, PrefixCache)]
        for pool in self._pools:
            pool.publish(self._stored, self._removed)

    def _removed(self, ids: Sequence[int]) -> None:
        super()._removed([block for block in ids if not any(pool.holds(block) for pool in self._pools)])
