"""Which replicas hold which prompt blocks: one bit per replica, one integer per block id.

A block id names its block *and everything before it*, so a replica that holds a prompt's ``k``-th block holds those
before it as well (caches evict from the end). Replicas drop out one by one as a prompt is followed; the index finds
where by bisection, so a look-up costs a few steps per distinct hit length, not one per block and replica.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from simulator.routing.fleet import Fleet


class PrefixIndex:
    """Block id -> replicas, as a bit mask."""

    __slots__ = ("_masks",)

    def __init__(self) -> None:
        self._masks: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._masks)

    def add(self, replica: int, ids: Iterable[int]) -> None:
        """``replica`` now holds the blocks ``ids``."""
        masks, bit = self._masks, 1 << replica
        new = dict.fromkeys(ids, bit)
        shared = masks.keys() & new.keys()
        for block in shared:
            new[block] = masks[block] | bit
        masks.update(new)

    def remove(self, replica: int, ids: Iterable[int]) -> None:
        """``replica`` no longer holds them."""
        masks, bit = self._masks, 1 << replica
        for block in ids:
            mask = masks.pop(block, bit)
            if mask != bit and (left := mask & ~bit):
                masks[block] = left

    def clear(self, replica: int) -> None:
        """``replica`` has lost everything."""
        self.remove(replica, list(self._masks))

    def hits(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """``(mask, blocks)``: which replicas hold exactly the first ``blocks`` blocks; longest hit last.

        Replicas that hold none are left out.
        """
        masks = self._masks
        found: list[tuple[int, int]] = []
        mask = masks.get(ids[0], 0) if len(ids) else 0
        start = 0
        while mask:
            end = self._extent(ids, start, mask)
            after = masks.get(ids[end], 0) & mask if end < len(ids) else 0
            found.append((mask & ~after, end))
            mask, start = after, end
        return found

    def _extent(self, ids: Sequence[int], start: int, mask: int) -> int:
        """First position after ``start`` that not all of ``mask`` hold: by galloping, then bisection."""
        masks = self._masks
        low, step, high = start, 1, len(ids)
        while low + step < high:
            if masks.get(ids[low + step], 0) & mask == mask:
                low += step
                step *= 2
            else:
                high = low + step
                break
        while high - low > 1:
            middle = (low + high) // 2
            if masks.get(ids[middle], 0) & mask == mask:
                low = middle
            else:
                high = middle
        return high

    def hit_blocks(self, ids: Sequence[int], size: int) -> NDArray[np.int64]:
        """Blocks of the prompt that each of ``size`` replicas holds, (size,)."""
        blocks = np.zeros(size, dtype=np.int64)
        for mask, length in self.hits(ids):
            if mask & (mask - 1):
                blocks[positions(mask, size)] = length
            else:
                blocks[mask.bit_length() - 1] = length
        return blocks


@lru_cache(maxsize=4096)  # popular prefixes are held by the same replicas for a while
def positions(mask: int, size: int) -> NDArray[np.int64]:
    """Positions of the ones among ``size`` bits, ascending. Not to be written to."""
    width = -(-size // 8)
    octets = np.frombuffer(mask.to_bytes(width, "little"), dtype=np.uint8)
    return np.flatnonzero(np.unpackbits(octets, bitorder="little"))


def least_of(mask: int, fleet: Fleet) -> int:
    """The replica with the fewest requests in flight among the ones of ``mask``, the first of them on a tie."""
    if not mask & (mask - 1):
        return mask.bit_length() - 1
    among = positions(mask, fleet.size)
    return int(among[fleet.in_flight[among].argmin()])


class RoutedPrefixes:
    """What a router believes to be cached because it sent it there: the last ``capacity`` blocks per replica.

    Routers without a view into the engines do this (SGLang's router, llm-d's and Dynamo's approximate modes).
    """

    def __init__(self, size: int, capacity: int) -> None:
        self.index = PrefixIndex()
        self._capacity = capacity
        self._recent: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(size)]

    def routed(self, replica: int, ids: Sequence[int]) -> None:
        """A prompt of these blocks went to ``replica``."""
        recent = self._recent[replica]
        self.index.add(replica, [block for block in ids if block not in recent])
        for block in reversed(ids):  # the start of a prompt is the last to be forgotten
            recent[block] = None
            recent.move_to_end(block)
        over = len(recent) - self._capacity
        if over > 0:
            self.index.remove(replica, [recent.popitem(last=False)[0] for _ in range(over)])
