"""KV of chunks that is reused wherever a chunk stands in a prompt, from the tiers behind the prefix cache.

What stands before a chunk changes its KV a little: a share of its tokens is computed again in its new place
(CacheBlend chooses those whose KV deviates most) and the rest is loaded. So ``c`` tokens found cost the reading of all
of them and the computation of ``recompute_fraction * c``, whose attention sees the whole prompt; layer by layer the
longer of the two shows. In the first ``recompute_layers`` all ``c`` are computed, to see whose KV deviates. A chunk at
the very beginning of a prompt is computed in no part again.

Tiers hold chunks in pieces of the trace's blocks, the last of them not full, and may forget one piece and keep another.

Reference: Yao et al., CacheBlend, EuroSys 2025 (arXiv:2405.16444).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from simulator.kv.prefix import PrefixCache
from simulator.kv.tier import Tier
from simulator.kv.tiers import PrefillSeconds, TierSet, TierStack

Ints = NDArray[np.int64]


class ChunkTable:
    """The chunks of every request, cut into pieces of ``piece_tokens``, and which blocks complete them.

    offsets, ids, tokens: as in a trace's chunks. complete: id of the prefix block in which each chunk's last token
    lies, -1 where there is none.
    """

    def __init__(self, offsets: Ints, ids: Ints, tokens: Ints, complete: Ints, piece_tokens: int) -> None:
        known, which = np.unique(ids, return_inverse=True)
        longest = np.zeros(len(known), dtype=np.int64)
        np.maximum.at(longest, which, tokens)
        pieces = -(-longest // piece_tokens)
        running = np.concatenate(([0], np.cumsum(tokens)))
        self.piece_tokens = piece_tokens
        self._offsets, self._tokens = offsets, tokens
        self._first = (np.cumsum(pieces) - pieces)[which]
        self._ends = running[1:] - np.repeat(running[offsets[:-1]], np.diff(offsets))
        self.completed: Mapping[int, list[tuple[int, int]]] = _by_block(complete, self._first, tokens)

    def of(self, row: int) -> Iterator[tuple[int, int, int]]:
        """(first piece, tokens, where in the prompt it ends) of each chunk of a request."""
        mine = slice(self._offsets[row], self._offsets[row + 1])
        columns = (self._first[mine], self._tokens[mine], self._ends[mine])
        return zip(*(column.tolist() for column in columns), strict=True)


def _by_block(complete: Ints, first: Ints, tokens: Ints) -> dict[int, list[tuple[int, int]]]:
    """Block -> (first piece, tokens) of the chunks that it completes."""
    found: dict[int, list[tuple[int, int]]] = {}
    rows = np.unique(np.stack([complete, first, tokens], axis=1)[complete >= 0], axis=0)
    for block, piece, length in rows.tolist():
        found.setdefault(block, []).append((piece, length))
    return found


class ChunkStack(TierStack):
    """Tiers that are asked for a prompt's chunks instead of its prefix."""

    __slots__ = ("_bytes_per_token", "_compute_s", "_recompute", "_recompute_layers", "_table")

    def __init__(
        self, plan: TierSet, tiers: Sequence[Tier], cache: PrefixCache, prefill_s: PrefillSeconds, table: ChunkTable
    ) -> None:
        super().__init__(plan, tiers, cache, prefill_s)
        self._table = table
        self._recompute = plan.recompute_fraction
        self._recompute_layers = plan.recompute_layers / plan.num_layers if plan.recompute_fraction else 0.0
        self._bytes_per_token = plan.bytes_per_token
        self._compute_s = prefill_s

    def find(self, row: int, ids: Sequence[int], have: int, limit: int, block_size: int) -> int:
        """Engine blocks that need not be computed, thanks to chunks beyond the first ``have`` blocks."""
        del ids
        usable, wanted = 0.0, [0.0] * len(self.tiers)
        for _, tier, tokens, kept in self._pieces(row, have * block_size):
            usable += kept
            wanted[tier] += tokens * self._bytes_per_token
        blocks = min(int(usable) // block_size, limit - have)
        if blocks <= 0:
            return 0
        if self._prefill_s is not None:
            computing = self._prefill_s(blocks * block_size, have * block_size)
            if self._seconds(wanted) > computing:
                return 0
        return blocks

    def load(self, row: int, ids: Sequence[int], have: int, blocks: int) -> None:
        del ids
        covered = have * self._block_tokens // self._unit
        found = list(self._pieces(row, covered))
        share = blocks * self._block_tokens / self._unit / sum(kept for _, _, _, kept in found)
        chosen_among = 0.0  # tokens that are computed in the first layers and not in those after
        for _, index, tokens, kept in found:
            tier = self.tiers[index]
            tier.hit_tokens += share * kept
            self._wanted[tier] = self._wanted.get(tier, 0.0) + tokens * self._bytes_per_token
            if kept < tokens:
                chosen_among += kept
        for tier in self.tiers:
            tier.touch([piece for piece, _, _, _ in reversed(found)])
        if chosen_among and self._recompute_layers:
            tokens = int(chosen_among)
            seconds = self._compute_s(tokens + 1, covered) - self._compute_s(1, covered + tokens)
            self._extra_s += seconds * self._recompute_layers

    def _pieces(self, row: int, covered: int) -> Iterator[tuple[int, int, int, float]]:
        """(piece, fastest tier that holds it, its tokens past the first ``covered`` of the prompt, how many of them
        need not be computed)."""
        size, now = self._table.piece_tokens, self.now
        for first, length, end in self._table.of(row):
            begin = max(covered - (end - length), 0)  # within the chunk
            spared = 1.0 if end == length else 1.0 - self._recompute
            for number in range(begin // size, -(-length // size)):
                tokens = min((number + 1) * size, length) - max(number * size, begin)
                for index, tier in enumerate(self.tiers):
                    if tokens > 0 and tier.holds(first + number, now):
                        yield first + number, index, tokens, tokens * spared
                        break

    def _stored(self, ids: Sequence[int]) -> None:
        """The blocks of a prompt are computed in this step, and with them the chunks that end there."""
        size = self._table.piece_tokens
        for block in ids:
            for first, length in self._table.completed.get(block, ()):
                self._new.extend(reversed(range(first, first - (-length // size))))

    def _evicted(self, ids: Sequence[int]) -> None:
        """What the prefix cache forgets is in the tiers already."""
