"""Chained block ids: checking them, making them, and what an infinite cache would hit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from traces.trace import Ints, PrefixBlocks


def from_rows(rows: Sequence[Iterable[int]], block_tokens: int) -> PrefixBlocks:
    """CSR form of one list of ids per request."""
    lists = [np.fromiter(row, np.int64) for row in rows]
    offsets = np.concatenate(([0], np.cumsum([len(ids) for ids in lists], dtype=np.int64))).astype(np.int64)
    return PrefixBlocks(offsets, np.concatenate(lists) if lists else np.zeros(0, np.int64), block_tokens)


def positions(prefix: PrefixBlocks) -> Ints:
    """Index of each listed block within its own row."""
    return np.arange(len(prefix.ids)) - np.repeat(prefix.offsets[:-1], prefix.counts())


def first_seen(ids: Ints) -> Ints:
    """For every element the index at which its value first occurs. O(n) where the ids are dense."""
    n = len(ids)
    if n == 0:
        return np.zeros(0, dtype=np.int64)
    low, high = int(ids.min()), int(ids.max())
    if high - low <= 8 * n + 1024:
        table = np.empty(high - low + 1, dtype=np.int64)
        table[ids[::-1] - low] = np.arange(n - 1, -1, -1)  # the last write to a cell, the first occurrence, stays
        return table[ids - low]
    _, first, which = np.unique(ids, return_index=True, return_inverse=True)
    return np.asarray(first[which], dtype=np.int64)


def is_chained(prefix: PrefixBlocks) -> bool:
    """True when equal ids always have equal prefixes: one position and one predecessor per id."""
    if len(prefix.ids) == 0:
        return True
    position = positions(prefix)
    before = np.where(position > 0, np.concatenate(([0], prefix.ids[:-1])), -1)
    seen = first_seen(prefix.ids)
    return bool((position == position[seen]).all() and (before == before[seen])[position > 0].all())


def chain_ids(prefix: PrefixBlocks) -> PrefixBlocks:
    """New ids, dense from 0, that stand for a block *and* all blocks before it.

    For formats that hash each block by its own content: there an id may repeat after different prefixes. Works level by
    level (all first blocks, then all second ones): two blocks get one id when their predecessors have one id and their
    own ids are equal. O(blocks log blocks).
    """
    counts = prefix.counts()
    order = np.argsort(-counts, kind="stable")  # so that the rows that reach a level are a leading slice
    starts, depth = prefix.offsets[:-1][order], counts[order]
    _, raw = np.unique(prefix.ids, return_inverse=True)
    distinct = int(raw.max()) + 1 if len(raw) else 1
    chained = np.empty(len(prefix.ids), dtype=np.int64)
    parent = np.full(len(order), -1, dtype=np.int64)
    given = 0
    for level in range(int(depth[0]) if len(depth) else 0):
        active = int(np.searchsorted(-depth, -level, side="left"))
        at = starts[:active] + level
        _, own = np.unique((parent[:active] + 1) * distinct + raw[at], return_inverse=True)
        parent = given + own.astype(np.int64)
        chained[at] = parent
        given += int(own.max()) + 1
    return PrefixBlocks(prefix.offsets, chained, prefix.block_tokens)


def ensure_chained(prefix: PrefixBlocks) -> PrefixBlocks:
    """The same ids where they are chained already, ``chain_ids`` of them otherwise."""
    return prefix if is_chained(prefix) else chain_ids(prefix)


def cut_to_full_blocks(prefix: PrefixBlocks, prompt_tokens: Ints) -> PrefixBlocks:
    """Drop the ids beyond each prompt's last full block."""
    counts = prefix.counts()
    kept = np.minimum(counts, prompt_tokens // prefix.block_tokens)
    if (kept == counts).all():
        return prefix
    keep = positions(prefix) < np.repeat(kept, counts)
    return PrefixBlocks(np.concatenate(([0], np.cumsum(kept))), prefix.ids[keep], prefix.block_tokens)


def infinite_cache_hits(prefix: PrefixBlocks) -> NDArray[np.int64]:
    """Leading blocks of each request that some earlier request had, if nothing was ever evicted.

    Ids are chained: a block that was seen has all its predecessors seen, so there is no scan for the first miss.
    """
    if len(prefix.ids) == 0:
        return np.zeros(len(prefix), dtype=np.int64)
    owner = np.repeat(np.arange(len(prefix)), prefix.counts())
    seen = owner[first_seen(prefix.ids)] < owner
    running = np.concatenate(([0], np.cumsum(seen)))
    return running[prefix.offsets[1:]] - running[prefix.offsets[:-1]]


def blocks_of_parts(parts: PrefixBlocks, tokens: Ints, block_tokens: int) -> PrefixBlocks:
    """Chained ids of the full blocks of prompts that are sequences of parts.

    What stands before a block's end is known from the chain of parts up to the one its last token lies in, and from the
    block's position: that pair is its id.
    """
    chained = chain_ids(parts).ids
    ends = row_cumsum(tokens, parts.offsets)
    per_part = ends // block_tokens - (ends - tokens) // block_tokens
    last = np.repeat(np.arange(len(parts.ids)), per_part)
    starts = np.repeat(np.cumsum(per_part) - per_part, per_part)
    position = np.repeat((ends - tokens) // block_tokens, per_part) + np.arange(len(last)) - starts
    total = np.concatenate(([0], np.cumsum(per_part)))
    _, ids = np.unique(chained[last] * (int(position.max(initial=0)) + 1) + position, return_inverse=True)
    return PrefixBlocks(total[parts.offsets], ids.astype(np.int64), block_tokens)


def row_cumsum(values: Ints, offsets: Ints) -> Ints:
    """Running sums of ragged rows, each from its own start."""
    running = np.concatenate(([0], np.cumsum(values)))
    within: Ints = running[1:] - np.repeat(running[offsets[:-1]], np.diff(offsets))
    return within
