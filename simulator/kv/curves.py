"""Hit ratio against capacity: what a prefix cache would have held, without running an engine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from simulator.kv.eviction import EVICTIONS

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Progress = Callable[[], None]


@dataclass(frozen=True)
class Accesses:
    """Prompts as blocks in the order in which they are used: request by request, each from its last block to its first.

    All (accesses,) but ``starts`` (requests + 1,).
    """

    block: Ints  # 0, 1, ... by first use
    starts: Ints  # first access of each request
    position: Ints  # in the prompt
    parent: Ints  # block before it; -1: none
    previous: Ints  # access that used the block before; -1: none
    next_use: Ints  # access that uses it next; len(block): none

    @property
    def num_blocks(self) -> int:
        """Different blocks."""
        return int(self.block.max()) + 1 if len(self.block) else 0

    @property
    def ideal(self) -> float:
        """Share of blocks that were seen before: the hit ratio of a cache without end."""
        return float(np.mean(self.previous >= 0)) if len(self.block) else 0.0


@dataclass(frozen=True)
class Curve:
    """Hit ratios (capacities,) of one policy.

    blocks: of all blocks; prefix: of those held together with all before them, which alone an engine can use.
    """

    policy: str
    capacity: Ints
    blocks: Floats
    prefix: Floats


def accesses(offsets: Ints, ids: Ints) -> Accesses:
    """From ragged prompts (row ``i`` owns ``ids[offsets[i]:offsets[i + 1]]``), chained ids, in order of arrival."""
    _, block = np.unique(ids, return_inverse=True)
    n, counts = len(ids), np.diff(offsets)
    place = np.arange(n) - np.repeat(offsets[:-1], counts)
    parent = np.where(place > 0, np.concatenate([[-1], block[:-1]]), -1)
    order = np.repeat(offsets[:-1] + offsets[1:] - 1, counts) - np.arange(n)  # each prompt backwards
    block, place, parent = block[order], place[order], parent[order]
    previous, next_use = np.full(n, -1, dtype=np.int64), np.full(n, n, dtype=np.int64)
    by_block = np.argsort(block, kind="stable")
    same = block[by_block[1:]] == block[by_block[:-1]]
    previous[by_block[1:][same]] = by_block[:-1][same]
    next_use[by_block[:-1][same]] = by_block[1:][same]
    return Accesses(block, offsets.astype(np.int64), place, parent, previous, next_use)


def lru_curve(found: Accesses, capacity: Ints) -> Curve:
    """LRU at every capacity in one pass, by stack distances.

    A block is held when fewer different blocks than the capacity were used since its last use, its own prompt's not
    counted. Mattson et al. (1970), 10.1147/sj.92.0078; distances by counting ranks in a wavelet matrix, O(n log n).
    """
    distance = stack_distances(found)
    # A block is of use when all those before it in the prompt are held: as far as the longest distance among them.
    reach = distance.copy()
    first_to_last = len(reach) - 1 - np.arange(len(reach))
    request = np.repeat(np.arange(len(found.starts) - 1), np.diff(found.starts))[first_to_last]
    reach[first_to_last] = _running_maximum(distance[first_to_last], request)
    total = max(len(distance), 1)
    return Curve(
        "lru",
        capacity,
        np.searchsorted(np.sort(distance), capacity, side="left") / total,
        np.searchsorted(np.sort(reach), capacity, side="left") / total,
    )


def stack_distances(found: Accesses) -> Ints:
    """Different blocks used between a block's last use and the beginning of its request; a very large number for a
    block that was not used before, (accesses,)."""
    n = len(found.block)
    start = np.repeat(found.starts[:-1], np.diff(found.starts))
    again = np.flatnonzero(found.previous >= 0)
    since = found.previous[again]
    # Blocks used since then, each at its first use since: uses before ``start`` whose own previous use lies before.
    earlier = count_less(found.previous + 1, start[again], since + 1)
    distance = np.full(n, np.iinfo(np.int64).max)
    distance[again] = earlier - (since + 1)
    return distance


def count_less(values: Ints, end: Ints, bound: Ints) -> Ints:
    """How many of ``values[:end[q]]`` are less than ``bound[q]``, for all queries at once, (queries,).

    values: non-negative. A wavelet matrix walked from the highest bit: Claude, Navarro, Ordonez (2015),
    10.1016/j.is.2014.06.002.
    """
    low, high, count = np.zeros_like(end), end.astype(np.int64), np.zeros_like(end)
    for bit in range(max(int(max(values.max(initial=0), bound.max(initial=0))).bit_length(), 1) - 1, -1, -1):
        one = (values >> bit & 1).astype(bool)
        zeros = np.concatenate([[0], np.cumsum(~one)])
        wanted = (bound >> bit & 1).astype(bool)
        zeros_low, zeros_high = zeros[low], zeros[high]
        count += np.where(wanted, zeros_high - zeros_low, 0)
        low = np.where(wanted, zeros[-1] + low - zeros_low, zeros_low)
        high = np.where(wanted, zeros[-1] + high - zeros_high, zeros_high)
        values = np.concatenate([values[~one], values[one]])
    return count


def _running_maximum(values: Ints, group: Ints) -> Ints:
    """Maximum so far within each group of consecutive equal numbers, which fall; (n,)."""
    shift = np.int64(1) << 40  # ranks of groups outweigh any distance
    capped = np.minimum(values, shift - 1)
    rank = group[0] - group if len(group) else group
    reached = np.maximum.accumulate(capped + rank * shift) - rank * shift
    return np.where(reached >= shift - 1, np.iinfo(np.int64).max, reached)


def simulated_curve(found: Accesses, policy: str, capacity: Ints, progress: Progress | None = None) -> Curve:
    """Any policy, one pass per capacity: each request looks its blocks up, then uses them all.

    Raises PolicyError for an unknown policy.
    """
    make = EVICTIONS.get(policy)
    blocks, prefix = np.zeros(len(capacity)), np.zeros(len(capacity))
    rows = [column.tolist() for column in (found.block, found.position, found.parent, found.next_use)]
    starts = found.starts.tolist()
    for i, size in enumerate(capacity.tolist()):
        cache = make(size)
        held = useful = 0
        for begin, end in pairwise(starts):
            whole = True
            for block in reversed(rows[0][begin:end]):  # from the first block on
                if block in cache:
                    held += 1
                    useful += whole
                else:
                    whole = False
            for access in zip(*(row[begin:end] for row in rows), strict=True):
                cache.access(*access)
        blocks[i], prefix[i] = held, useful
        if progress is not None:
            progress()
    total = max(len(found.block), 1)
    return Curve(policy, capacity, blocks / total, prefix / total)


def hit_curve(found: Accesses, policy: str, capacity: Ints, progress: Progress | None = None) -> Curve:
    """Exact for every policy; LRU in one pass."""
    if policy == "lru":
        curve = lru_curve(found, capacity)
        if progress is not None:
            for _ in range(len(capacity)):
                progress()
        return curve
    return simulated_curve(found, policy, capacity, progress)


def capacities(found: Accesses, count: int = 9) -> Ints:
    """From a hundredth of the different blocks to all of them, evenly on a logarithmic scale."""
    most = max(found.num_blocks, 1)
    return np.unique(np.geomspace(max(most / 100, 1), most, count).round().astype(np.int64))
