"""The KV tiers of every replica; one that is shared is built once."""

from __future__ import annotations

from simulator.cluster.plan import Group
from simulator.kv.prefix import PrefixCache
from simulator.kv.tiers import Tier, TierStack
from simulator.replica.records import TierRecord
from simulator.scheduling import EngineState


class Tiers:
    """Builds the stacks of a cluster, and says at the end what each tier did."""

    def __init__(self) -> None:
        self._shared: dict[str, Tier] = {}
        self._own: list[tuple[int, Tier]] = []
        self._stacks: list[TierStack] = []

    def connect(self, replica: int, group: Group, state: EngineState) -> None:
        """Put the group's tiers behind a replica's prefix cache."""
        plan, pool = group.tiers, state.pool
        if plan is None or not isinstance(pool, PrefixCache):
            return
        block_bytes = plan.bytes_per_token * pool.block_size * pool.unit
        tiers = []
        for tier in plan.tiers:
            if not tier.shared:
                built = Tier(tier, block_bytes)
                self._own.append((replica, built))
            elif tier.name in self._shared:
                built = self._shared[tier.name]
            else:
                built = self._shared[tier.name] = Tier(tier, block_bytes)
            tiers.append(built)

        def prefill_s(tokens: int, computed: int) -> float:
            return group.cost.mixed(0, 0, 0, [(tokens, computed)], 1)

        state.tiers = TierStack(plan, tiers, pool, prefill_s)
        self._stacks.append(state.tiers)

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
            )
            for replica, tier in [*self._own, *shared]
        )

    @property
    def load_s(self) -> float:
        """Seconds that loading added to steps, over all replicas."""
        return sum(stack.load_s for stack in self._stacks)
