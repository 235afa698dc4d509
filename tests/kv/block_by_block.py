"""vLLM's prefix cache written the slow way: one object per block, one entry per hash. The yardstick for runs.

Follows the behaviour of vLLM 0.33's ``BlockPool`` and ``FullAttentionManager``: a free queue in eviction order, blocks
without a hash returned to its front and blocks with one to its end, tail first; instances of one hash kept side by
side, the oldest used first.
"""

from __future__ import annotations

from collections.abc import Hashable


class Block:
    def __init__(self) -> None:
        self.key: Hashable | None = None
        self.refs = 0


class BlockByBlock:
    def __init__(self, num_blocks: int) -> None:
        self.queue = [Block() for _ in range(num_blocks)]  # free blocks, evicted from the front
        self.index: dict[Hashable, list[Block]] = {}

    @property
    def free(self) -> int:
        return len(self.queue)

    @property
    def cached(self) -> int:
        return sum(block.key is not None for block in self.queue)

    def lookup(self, keys: list[Hashable], max_blocks: int) -> list[Block]:
        found = []
        for key in keys[:max_blocks]:
            if not self.index.get(key):
                break
            found.append(self.index[key][0])
        return found

    def hold(self, blocks: list[Block]) -> None:
        for block in blocks:
            if block.refs == 0:
                self.queue.remove(block)
            block.refs += 1

    def take(self, count: int) -> list[Block]:
        taken, self.queue = self.queue[:count], self.queue[count:]
        for block in taken:
            if block.key is not None:
                self.index[block.key].remove(block)
                block.key = None
            block.refs = 1
        return taken

    def cache(self, blocks: list[Block], keys: list[Hashable], full: int) -> None:
        for block, key in list(zip(blocks, keys, strict=False))[:full]:
            if block.key is None:
                block.key = key
                self.index.setdefault(key, []).append(block)

    def release(self, blocks: list[Block]) -> None:
        first, last = [], []
        for block in reversed(blocks):
            block.refs -= 1
            if block.refs == 0:
                (first if block.key is None else last).append(block)
        self.queue = first + self.queue + last
