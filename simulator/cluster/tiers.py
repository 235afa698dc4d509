"""The KV tiers of every replica; one that is shared is built once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from simulator.cluster.engines import ids_block_size
from simulator.cluster.plan import Group, RouterPlan
from simulator.core.errors import PolicyError, ScenarioError
from simulator.kv.chunks import ChunkStack, ChunkTable
from simulator.kv.eviction import EVICTIONS
from simulator.kv.prefix import PrefixCache
from simulator.kv.tier import Place, Tier, TierPlan
from simulator.kv.tiers import TierSet, TierStack
from simulator.replica.aside import AsideEngine
from simulator.replica.moves import AnyEngine
from simulator.replica.records import TierRecord
from simulator.scheduling.asides import Asides
from traces.prefix import positions, row_cumsum
from traces.trace import Chunks, Ints, PrefixBlocks, Trace


class Tiers:
    """Builds the stacks of a cluster, and says at the end what each tier did."""

    def __init__(self, trace: Trace, groups: Sequence[Group]) -> None:
        self._trace = trace
        self._stride = 1  # blocks of the trace per id that requests carry
        plans = [group.tiers for group in groups if group.tiers is not None]
        if plans and trace.prefix is not None:
            self._stride = max(ids_block_size(trace, tuple(groups)) // trace.prefix.block_tokens, 1)
        self._table: ChunkTable | None = None
        self._places: dict[int, Place] | None = None
        self._shared: dict[str, Tier] = {}
        self._own: list[tuple[int, Tier]] = []
        self._stacks: list[TierStack] = []
        self._here: dict[int, TierStack] = {}  # by place
        self._groups = groups

    def connect(self, replica: int, place: int, group: Group, engine: AnyEngine) -> None:
        """Put the group's tiers behind a replica's prefix cache. place: what routers number."""
        state = engine.state
        plan, pool = group.tiers, state.pool
        if plan is None or not isinstance(pool, PrefixCache):
            return
        block_bytes = plan.bytes_per_token * pool.block_size * pool.unit
        tiers = []
        for tier in plan.tiers:
            if not tier.shared:
                built = Tier(tier, block_bytes, self._places_for(tier, plan), window=plan.prefetch)
                self._own.append((replica, built))
            elif tier.name in self._shared:
                built = self._shared[tier.name]
            else:
                places = self._places_for(tier, plan)
                built = self._shared[tier.name] = Tier(tier, block_bytes, places, window=plan.prefetch)
            tiers.append(built)

        def prefill_s(tokens: int, computed: int) -> float:
            return group.cost.mixed(0, 0, 0, [(tokens, computed)], 1)

        if plan.match == "chunks":
            table = self._chunk_table(pool.block_size * pool.unit)
            state.tiers = ChunkStack(plan, tiers, pool, prefill_s, table)
        else:
            state.tiers = TierStack(plan, tiers, pool, prefill_s)
        self._stacks.append(state.tiers)
        self._here[place] = state.tiers
        if isinstance(engine, AsideEngine):
            engine.connect(Asides(state, loads=plan.load == "async", window=plan.prefetch))

    def after(self, replica: int, ids: Sequence[int], have: int, now: float) -> Sequence[int]:
        """A ``TierView``'s."""
        stack = self._here.get(replica)
        return () if stack is None else stack.own_after(ids, have, now)

    def check_seen(self, router: RouterPlan) -> None:
        """Raises PolicyError where a router would be shown nothing of the tiers, or what has changed since."""
        plans = [group.tiers for group in self._groups if group.tiers is not None]
        if not any(not tier.shared for plan in plans for tier in plan.tiers):
            message = f"router {router.policy!r} weighs KV tiers of the replicas, and there are none but shared ones."
            remedy = "Leave tier_weight out, or give engine.kv_tiers one that is not shared."
            raise PolicyError(message, where="cluster.router.options", remedy=remedy)
        if any(plan.match == "chunks" for plan in plans):
            message = f"router {router.policy!r} looks for prefixes in tiers that hold chunks."
            remedy = "Leave tier_weight out, or use kv_tier_match: prefix."
            raise PolicyError(message, where="cluster.router.options", remedy=remedy)
        if router.metrics_interval_s > 0:
            message = f"router {router.policy!r} is shown tiers as they are when it routes, and caches as they were."
            raise PolicyError(message, where="cluster.router.metrics_interval_s", remedy="Set it to 0.")

    def _places_for(self, tier: TierPlan, plan: TierSet) -> dict[int, Place] | None:
        """Position and predecessor of each prefix block, where the tier's policy weighs them."""
        prefix = self._trace.prefix
        if plan.match == "chunks" or prefix is None or not EVICTIONS.get(tier.eviction).needs_places:
            return None
        if self._places is None:
            ids, first = np.unique(prefix.ids, return_index=True)
            position = positions(prefix)[first]
            before = np.where(position >= self._stride, prefix.ids[first - np.minimum(first, self._stride)], -1)
            places = zip((position // self._stride).tolist(), before.tolist(), strict=True)
            self._places = dict(zip(ids.tolist(), places, strict=True))
        return self._places

    def _chunk_table(self, piece_tokens: int) -> ChunkTable:
        """Raises ScenarioError when the trace names no chunks."""
        if self._table is None:
            chunks, prefix = self._trace.chunks, self._trace.prefix
            if chunks is None or prefix is None:
                remedy = "Use a trace that does, such as RAGPulse's or synthetic documents, or kv_tier_match: prefix."
                raise ScenarioError("the requests name no chunks to look up.", where=self._trace.source, remedy=remedy)
            complete = _completing(chunks, prefix, self._stride)
            self._table = ChunkTable(chunks.offsets, chunks.ids, chunks.tokens, complete, piece_tokens)
        return self._table

    def records(self) -> tuple[TierRecord, ...]:
        """One row per tier and replica, shared ones with replica -1."""
        shared = [(-1, tier) for tier in self._shared.values()]
        return tuple(
            TierRecord(
                tier.plan.name,
                replica,
                tier.plan.capacity_bytes,
                tier.hit_tokens,
                tier.bytes_read,
                tier.bytes_written,
                tier.busy_s,
                tier.bytes_prefetched,
            )
            for replica, tier in [*self._own, *shared]
        )

    @property
    def load_s(self) -> float:
        """Seconds that loading added to steps, over all replicas."""
        return sum(stack.load_s for stack in self._stacks)

    @property
    def aside_s(self) -> float:
        """Seconds that requests waited aside for what was loaded, over all of them."""
        return sum(stack.aside_s for stack in self._stacks)


def _completing(chunks: Chunks, prefix: PrefixBlocks, stride: int) -> Ints:
    """Id (as requests carry it) of the block in which each chunk ends, or of the prompt's last full one; -1: none."""
    if not len(prefix.ids):
        return np.full(len(chunks.ids), -1)
    ends = row_cumsum(chunks.tokens, chunks.offsets)
    full = np.repeat(prefix.counts() // stride, chunks.counts())
    block = np.minimum((ends - 1) // (prefix.block_tokens * stride), full - 1)
    at = np.repeat(prefix.offsets[:-1], chunks.counts()) + (block + 1) * stride - 1
    return np.where(full > 0, prefix.ids[np.minimum(at, len(prefix.ids) - 1)], -1)
