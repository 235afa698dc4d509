"""Eviction policies, one file each; importing this package registers those that ship."""

from simulator.kv.eviction import arc, belady, fifo, gdsf, lfu, look_ahead, lru, lru_k, pgdsf, radix, s3_fifo  # noqa: F401 - to register them
from simulator.kv.eviction.policy import EVICTIONS, Eviction, evictions

__all__ = ["EVICTIONS", "Eviction", "evictions"]
