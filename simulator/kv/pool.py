"""KV blocks of one replica, counted: which are free, and nothing about what is in them.

The pool is the whole truth when prefix caching is off. ``PrefixCache`` builds on it.
Check, then mutate: callers look at ``free`` first; taking more than there is raises, it never waits.
"""

from __future__ import annotations


class BlockPool:
    """``num_blocks`` interchangeable blocks of ``block_size`` tokens.

    vLLM keeps one block back as the null block, so a replica with ``num_gpu_blocks`` offers one less.
    """

    __slots__ = ("block_size", "cached", "free", "num_blocks")

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.free = num_blocks
        self.cached = 0  # free blocks that still hold a reusable prefix: none without a prefix cache

    def take(self, count: int) -> None:
        """Take ``count`` blocks. Raises ``RuntimeError`` when there are not as many."""
        free = self.free - count
        if free < 0:
            raise RuntimeError(f"{count} blocks asked for, {self.free} free: callers check before they take")
        self.free = free

    def give_back(self, count: int) -> None:
        """Return ``count`` blocks with nothing worth keeping in them."""
        self.free += count
