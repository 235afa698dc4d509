"""Slower places for KV blocks behind the prefix cache: host memory, local SSD, a pool that replicas share.

A block that the cache computes or forgets is copied down; a prompt whose prefix the cache lacks is looked up here and
loaded instead of computed. Tiers are inclusive: what goes down goes to every tier, and each forgets by its own policy,
as LMCache and vLLM's offloading connectors do with several back ends. Blocks are those of the trace: their ids say
what they hold, so equal prefixes are one copy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from simulator.kv.eviction import EVICTIONS, Eviction
from simulator.kv.prefix import PrefixCache

Write = Literal["evict", "through"]
Load = Literal["blocking", "layerwise"]
Match = Literal["prefix", "chunks"]
Place = tuple[int, int]  # position of a block in its prompt, id of the block before it
NOWHERE: Place = (0, -1)
PrefillSeconds = Callable[[int, int], float]  # (tokens to compute, tokens computed before) -> s


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


@dataclass(frozen=True, slots=True)
class TierSet:
    """The tiers of an engine, fastest first.

    bytes_per_token: KV of all ranks together. num_layers: of the model. load: whether a step waits for all that it
    loads before it computes, or for each layer. load_if_faster: else everything found is loaded, however slow.
    match: what is looked up: the prompt's prefix, or its chunks wherever they stand (``simulator.kv.chunks``), of which
    ``recompute_fraction`` is computed again.
    """

    tiers: tuple[TierPlan, ...]
    bytes_per_token: float
    num_layers: int
    load: Load = "layerwise"
    load_if_faster: bool = True
    match: Match = "prefix"
    recompute_fraction: float = 0.15

    @property
    def shared(self) -> bool:
        return any(tier.shared for tier in self.tiers)


class Tier:
    """What a tier holds, and its reads one after the other."""

    __slots__ = (
        "_blocks",
        "_places",
        "_ready",
        "busy_s",
        "busy_until",
        "bytes_read",
        "bytes_written",
        "hit_tokens",
        "plan",
    )

    def __init__(self, plan: TierPlan, block_bytes: float, places: Mapping[int, Place] | None = None) -> None:
        """block_bytes: KV of one block of the trace. places: where blocks stand, for eviction policies that ask."""
        self.plan = plan
        self._blocks: Eviction = EVICTIONS.get(plan.eviction)(max(1, int(plan.capacity_bytes // block_bytes)))
        self._places: Mapping[int, Place] = places or {}
        self._ready: dict[int, float] = {}  # s, of blocks still being computed
        self.busy_until = 0.0  # s
        self.busy_s = 0.0
        self.hit_tokens = 0.0
        self.bytes_read = 0.0
        self.bytes_written = 0.0

    def holds(self, block: int, now: float) -> bool:
        if block not in self._blocks:
            return False
        ready = self._ready.get(block)
        if ready is None:
            return True
        if ready > now:
            return False
        del self._ready[block]
        return True

    def store(self, block: int, num_bytes: float, ready: float | None = None) -> None:
        """Copy a block down; ready: when it will be there, s (None: it is)."""
        if not self._blocks.access(block, *self._places.get(block, NOWHERE), 0):
            self.bytes_written += num_bytes
            if ready is not None:
                self._ready[block] = ready

    def touch(self, block: int) -> None:
        """The block is used."""
        self._blocks.access(block, *self._places.get(block, NOWHERE), 0)

    def read(self, begin: float, num_bytes: float) -> float:
        """When ``num_bytes`` asked for at ``begin`` are there, s."""
        start = max(begin, self.busy_until)
        seconds = self.plan.latency_s + num_bytes / self.plan.bandwidth
        self.busy_until = start + seconds
        self.busy_s += seconds
        self.bytes_read += num_bytes
        return self.busy_until


class TierStack:
    """The tiers behind one prefix cache, fastest first."""

    __slots__ = (
        "_block_bytes",
        "_block_tokens",
        "_load",
        "_loads",
        "_new",
        "_num_layers",
        "_prefill_s",
        "_unit",
        "load_s",
        "now",
        "tiers",
    )

    def __init__(
        self,
        plan: TierSet,
        tiers: Sequence[Tier],
        cache: PrefixCache,
        prefill_s: PrefillSeconds,
    ) -> None:
        """tiers: those of the plan, built; shared ones are given to several stacks."""
        self.tiers = tiers
        self.now = 0.0  # s, of the plan being made; kept by the engine
        self.load_s = 0.0  # what loading added to steps
        self._unit = cache.unit
        self._block_bytes = plan.bytes_per_token * cache.block_size * cache.unit
        self._block_tokens = cache.block_size * cache.unit
        self._num_layers = plan.num_layers
        self._load = plan.load
        self._prefill_s = prefill_s if plan.load_if_faster else None
        self._loads: list[tuple[Tier, float]] = []  # of the step being planned
        self._new: list[int] = []  # blocks that this step computes
        cache.publish(self._stored, self._evicted)

    # -- looking up --------------------------------------------------------------------------------------------

    def find(self, row: int, ids: Sequence[int], have: int, limit: int, block_size: int) -> int:
        """Engine blocks from ``have`` on, at most up to ``limit``, that the tiers hold and are worth loading.

        row: of the trace. ids: of its blocks.
        """
        del row
        unit, now = self._unit, self.now
        end = index = have // unit
        while end < len(ids) and end * unit < limit and any(tier.holds(ids[end], now) for tier in self.tiers):
            end += 1
        blocks = min(end * unit, limit) - have
        if blocks <= 0:
            return 0
        if self._prefill_s is not None:
            waiting = self._read_seconds(ids[index:end])
            if waiting > self._prefill_s(blocks * block_size, have * block_size):
                return 0
        return blocks

    def _read_seconds(self, ids: Sequence[int]) -> float:
        """How long it would take from now on to read these blocks, each from the fastest tier that holds it."""
        wanted = [0.0] * len(self.tiers)
        for block in ids:
            wanted[next(i for i, tier in enumerate(self.tiers) if tier.holds(block, self.now))] += self._block_bytes
        return self._seconds(wanted)

    def _seconds(self, wanted: Sequence[float]) -> float:
        """From now on until so many bytes of each tier are read, queues included."""
        return max(
            max(tier.busy_until - self.now, 0.0) + tier.plan.latency_s + num_bytes / tier.plan.bandwidth
            for tier, num_bytes in zip(self.tiers, wanted, strict=True)
            if num_bytes
        )

    def load(self, row: int, ids: Sequence[int], have: int, blocks: int) -> None:
        """The step being planned loads ``blocks`` engine blocks from ``have`` on."""
        del row
        unit = self._unit
        share = blocks / unit / max(-(-(have + blocks) // unit) - have // unit, 1)
        for block in ids[have // unit : -(-(have + blocks) // unit)]:
            tier = next(tier for tier in self.tiers if tier.holds(block, self.now))
            tier.hit_tokens += share * self._block_tokens
            for other in self.tiers:
                if other.holds(block, self.now):
                    other.touch(block)
            self._loads.append((tier, share * self._block_bytes))

    # -- the step ----------------------------------------------------------------------------------------------

    def step_seconds(self, begin: float, seconds: float) -> float:
        """A step of ``seconds`` with what it loads; layer by layer, all but the first layer's share hides behind it."""
        if not self._loads:
            return self._commit(begin + seconds, seconds)
        wanted: dict[int, tuple[Tier, float]] = {}
        for tier, num_bytes in self._loads:
            before = wanted.get(id(tier), (tier, 0.0))[1]
            wanted[id(tier)] = (tier, before + num_bytes)
        self._loads.clear()
        loading = max(tier.read(begin, num_bytes) for tier, num_bytes in wanted.values()) - begin
        if self._load == "blocking":
            total = seconds + loading
        else:
            first = loading / self._num_layers
            total = first + max(seconds, loading - first)
        self.load_s += total - seconds
        return self._commit(begin + total, total)

    def _commit(self, end: float, seconds: float) -> float:
        """Blocks written through can be read when the step that computes them has ended."""
        if self._new:
            for tier in self.tiers:
                if tier.plan.write == "through":
                    for block in self._new:
                        tier.store(block, self._block_bytes, end)
            self._new.clear()
        return seconds

    # -- what the cache tells ----------------------------------------------------------------------------------

    def _stored(self, ids: Sequence[int]) -> None:
        if any(tier.plan.write == "through" for tier in self.tiers):
            self._new.extend(ids)

    def _evicted(self, ids: Sequence[int]) -> None:
        for tier in self.tiers:
            if tier.plan.write == "evict":
                for block in ids:
                    tier.store(block, self._block_bytes)
