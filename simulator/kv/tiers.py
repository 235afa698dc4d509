"""Slower places for KV blocks behind the prefix cache: host memory, local SSD, a pool that replicas share.

A block that the cache computes or forgets is copied down; a prompt whose prefix the cache lacks is looked up here and
loaded instead of computed. Tiers are inclusive: what goes down goes to every tier, and each forgets by its own policy,
as LMCache and vLLM's offloading connectors do with several back ends. Blocks are those of the trace: their ids say
what they hold, so equal prefixes are one copy. They are looked up in runs, many at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from simulator.kv.prefix import PrefixCache
from simulator.kv.tier import Tier, TierPlan

Load = Literal["blocking", "layerwise", "async"]
Match = Literal["prefix", "chunks"]
PrefillSeconds = Callable[[int, int], float]  # (tokens to compute, tokens computed before) -> s
Found = tuple[int, int, int]  # tier, first position, end position: blocks of a prompt in the fastest tier that has them

PART = 512  # ids looked up at a time


@dataclass(frozen=True, slots=True)
class TierSet:
    """The tiers of an engine, fastest first.

    bytes_per_token: KV of all ranks together. num_layers: of the model. load: whether a step waits for all that it
    loads before it computes, or for each layer, or the request waits aside and joins when all is there.
    load_if_faster: else everything found is loaded, however slow. prefetch: requests at the head of the queue whose
    blocks are brought up to the first tier, and spared by those that forget the least recently used.
    match: what is looked up: the prompt's prefix, or its chunks wherever they stand (``simulator.kv.chunks``), of which
    ``recompute_fraction`` is computed again, and all of it in the first ``recompute_layers``.
    """

    tiers: tuple[TierPlan, ...]
    bytes_per_token: float
    num_layers: int
    load: Load = "layerwise"
    load_if_faster: bool = True
    match: Match = "prefix"
    recompute_fraction: float = 0.15
    recompute_layers: int = 1
    prefetch: int = 0

    @property
    def shared(self) -> bool:
        return any(tier.shared for tier in self.tiers)

    @property
    def asides(self) -> bool:
        """Whether anything happens beside the steps."""
        return self.load == "async" or self.prefetch > 0


class TierStack:
    """The tiers behind one prefix cache, fastest first."""

    __slots__ = (
        "_after",
        "_block_bytes",
        "_block_tokens",
        "_cache",
        "_extra_s",
        "_found",
        "_load",
        "_new",
        "_num_layers",
        "_prefill_s",
        "_unit",
        "_wanted",
        "aside_s",
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
        self.now = 0.0  # s, of the plan being made
        self.load_s = 0.0  # what loading added to steps
        self.aside_s = 0.0  # how long requests waited aside, all together
        self._cache = cache
        self._unit = cache.unit
        self._block_bytes = plan.bytes_per_token * cache.block_size * cache.unit
        self._block_tokens = cache.block_size * cache.unit
        self._num_layers = plan.num_layers
        self._load = plan.load
        self._prefill_s = prefill_s if plan.load_if_faster else None
        self._found: tuple[tuple[int, int, float], list[Found]] | None = None  # (row, first, time), what ``find`` saw
        self._wanted: dict[Tier, float] = {}  # bytes that the step being planned reads
        self._after = 0.0  # s, when the last of what comes up from slower tiers for it is there
        self._extra_s = 0.0  # what the step computes for the sake of what it loads
        self._new: list[int] = []  # blocks that this step computes, the last of each prompt first
        cache.publish(self._stored, self._evicted)

    def begin(self, clock: float, now: float) -> None:
        """A step that begins at ``now`` is planned at ``clock``."""
        self.now = now
        for tier in self.tiers:
            tier.pass_to(clock)

    # -- looking up --------------------------------------------------------------------------------------------

    def find(self, row: int, ids: Sequence[int], have: int, limit: int, block_size: int) -> int:
        """Engine blocks from ``have`` on, at most up to ``limit``, that the tiers hold and are worth loading.

        row: of the trace. ids: of its blocks.
        """
        unit = self._unit
        first = have // unit
        found = list(self._runs(ids, first, min(len(ids), -(-limit // unit)), self.now))
        if not found:
            return 0
        blocks = min(found[-1][2] * unit, limit) - have
        if blocks <= 0:
            return 0
        if self._prefill_s is not None:
            wanted = [0.0] * len(self.tiers)
            for tier, lo, hi in found:
                wanted[tier] += (hi - lo) * self._block_bytes
            coming = max(self.tiers[tier].there_at(ids[lo:hi]) for tier, lo, hi in found) - self.now
            if max(self._seconds(wanted), coming) > self._prefill_s(blocks * block_size, have * block_size):
                return 0
        self._found = (row, first, self.now), found
        return blocks

    def _runs(self, ids: Sequence[int], first: int, end: int, now: float) -> Iterator[Found]:
        """Runs of ids from ``first`` on, one after the other, up to the first one that no tier has."""
        tiers = self.tiers
        for lo in range(first, end, PART):
            part = ids[lo : min(lo + PART, end)]
            held = [tier.held(part, now) for tier in tiers]
            at, size = 0, len(part)
            while at < size:
                which = next((i for i, mask in enumerate(held) if mask[at]), None)
                if which is None:
                    return
                stop = _next(held[which], 0, at)
                for faster in held[:which]:
                    stop = min(stop, _next(faster, 1, at))
                yield which, lo + at, lo + stop
                at = stop

    def _seconds(self, wanted: Sequence[float]) -> float:
        """From now on until so many bytes of each tier are read, queues included."""
        pairs = zip(self.tiers, wanted, strict=True)
        return max(tier.seconds(self.now, num_bytes) for tier, num_bytes in pairs if num_bytes)

    def own_after(self, ids: Sequence[int], have: int, now: float) -> list[int]:
        """Ids of a prompt after its first ``have`` that each tier holds, up to the first that none has; 0 for tiers
        that are shared."""
        blocks = [0] * len(self.tiers)
        for which, lo, hi in self._runs(ids, have, len(ids), now):
            if not self.tiers[which].plan.shared:
                blocks[which] += hi - lo
        return blocks

    def load(self, row: int, ids: Sequence[int], have: int, blocks: int) -> None:
        """The step being planned loads ``blocks`` engine blocks from ``have`` on."""
        wanted, self._after = self._take(row, ids, have, blocks, self._after)
        for tier, num_bytes in wanted.items():
            self._wanted[tier] = self._wanted.get(tier, 0.0) + num_bytes

    def load_aside(self, row: int, ids: Sequence[int], have: int, blocks: int) -> float:
        """The same beside the steps, from now on; returns when all is there, s."""
        wanted, after = self._take(row, ids, have, blocks, 0.0)
        ready = max([after, self.now, *(tier.read(self.now, num_bytes) for tier, num_bytes in wanted.items())])
        self.aside_s += ready - self.now
        return ready

    def _take(
        self, row: int, ids: Sequence[int], have: int, blocks: int, after: float
    ) -> tuple[dict[Tier, float], float]:
        """Bytes to read of each tier, and when the last of what comes up from slower tiers will be there, s."""
        unit = self._unit
        first, end = have // unit, -(-(have + blocks) // unit)
        share = blocks / unit / (end - first)
        if self._found is not None and self._found[0] == (row, first, self.now):
            found = self._found[1]
        else:
            found = list(self._runs(ids, first, end, self.now))
        self._found = None
        wanted: dict[Tier, float] = {}
        for which, lo, hi in found:
            tier, count = self.tiers[which], share * (min(hi, end) - lo)
            tier.hit_tokens += count * self._block_tokens
            wanted[tier] = wanted.get(tier, 0.0) + count * self._block_bytes
            after = max(after, tier.there_at(ids[lo:hi]))
        used = ids[first:end][::-1]
        for tier in self.tiers:
            tier.touch(used)
        return wanted, after

    # -- ahead of the queue ------------------------------------------------------------------------------------

    def expect(self, ids: Sequence[int], have: int, limit: int) -> None:
        """A request has come near the head of the queue: what the first tier lacks of its engine blocks from ``have``
        to ``limit`` comes up from slower ones, as far as that pushes out nothing that others wait for."""
        ids = ids[: -(-limit // self._unit)]
        backwards = ids[::-1]
        for tier in self.tiers:
            tier.expect(backwards)
        upper = self.tiers[0]
        now, room = self.now, upper.room
        for which, lo, hi in list(self._runs(ids, have // self._unit, len(ids), now)):
            missing = [block for block in ids[lo:hi] if block not in upper][:room] if which else []
            if missing:
                room -= len(missing)
                num_bytes = len(missing) * self._block_bytes
                lower = self.tiers[which]
                lower.bytes_prefetched += num_bytes
                upper.receive(missing[::-1], self._block_bytes, lower.read(now, num_bytes))

    def served(self, ids: Sequence[int], limit: int) -> None:
        """The request waits no more."""
        ids = ids[: -(-limit // self._unit)]
        for tier in self.tiers:
            tier.served(ids)

    # -- the step ----------------------------------------------------------------------------------------------

    def step_seconds(self, begin: float, seconds: float) -> float:
        """A step of ``seconds`` with what it loads; layer by layer, all but the first layer's share hides behind it."""
        if not self._wanted:
            return self._commit(begin + seconds, seconds)
        read = [tier.read(begin, num_bytes) for tier, num_bytes in self._wanted.items()]
        loading = max([self._after, *read]) - begin
        self._wanted.clear()
        compute = seconds + self._extra_s
        if self._load == "blocking":
            total = compute + loading
        else:
            first = loading / self._num_layers
            total = first + max(compute, loading - first)
        self.load_s += total - seconds
        self._after = self._extra_s = 0.0
        return self._commit(begin + total, total)

    def _commit(self, end: float, seconds: float) -> float:
        """Blocks written through can be read when the step that computes them has ended."""
        if self._new:
            for tier in self.tiers:
                if tier.plan.write == "through":
                    tier.store(self._new, self._block_bytes, end)
            self._new = []
        return seconds

    # -- what the cache tells ----------------------------------------------------------------------------------

    def _stored(self, ids: Sequence[int]) -> None:
        if any(tier.plan.write == "through" for tier in self.tiers):
            self._new.extend(reversed(ids))

    def _evicted(self, ids: Sequence[int]) -> None:
        for tier in self.tiers:
            if tier.plan.write == "evict":
                tier.store(ids, self._block_bytes)


def _next(mask: bytes, value: int, start: int) -> int:
    """First position from ``start`` on where ``mask`` has ``value``, its length if none."""
    found = mask.find(value, start)
    return found if found >= 0 else len(mask)
