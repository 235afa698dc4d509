"""Replicas of several data-parallel ranks: built, looked at from outside, and what they cannot do yet."""

from __future__ import annotations

from simulator.cluster.cache_events import CacheEvents, RankCacheEvents
from simulator.replica.moves import AnyEngine
from simulator.replica.wave import WaveEngine
from simulator.routing.prefix_index import PrefixIndex


def cache_events(engine: AnyEngine, replica: int, index: PrefixIndex | None) -> CacheEvents:
    """What an engine's prefix caches report."""
    if isinstance(engine, WaveEngine):
        return RankCacheEvents([rank.pool for rank in engine.ranks], replica, index)
    return CacheEvents(engine.state.pool, replica, index)
