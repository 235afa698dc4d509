"""The blocks that prompts use, as runs of blocks that move together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.kv.eviction.runs import Layout

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Accesses:
    """Prompts as runs in the order in which they are used: request by request, each from its last run to its first.

    A run is a stretch of blocks that every prompt holds whole or not at all, as long as can be.

    size, position, parent: (runs,): blocks, place of the first of them in its prompts, run before it (-1: none).
    run: (accesses,), each request's at ``starts`` (requests + 1,). next_request: (accesses,), the one that uses the
    run next; the number of requests: none.
    """

    size: Ints
    position: Ints
    parent: Ints
    run: Ints
    starts: Ints
    next_request: Ints

    @property
    def num_blocks(self) -> int:
        """Different blocks."""
        return int(self.size.sum())

    @property
    def num_used(self) -> int:
        """Blocks of all prompts together."""
        return int(self.size[self.run].sum())

    @property
    def requests(self) -> Ints:
        """Request of each access."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))

    @property
    def ideal(self) -> float:
        """Share of blocks that were seen before: the hit ratio of a cache without end."""
        return 1.0 - self.num_blocks / self.num_used if len(self.run) else 0.0

    @property
    def layout(self) -> Layout:
        """Blocks numbered within each run from its last to its first, one number left out between runs."""
        first = np.cumsum(self.size + 1) - self.size - 1
        columns = (first, self.size, self.position + self.size - 1, self.parent)
        return Layout(*(column.tolist() for column in columns))


@dataclass(frozen=True)
class BlockAccesses:
    """The same block by block, numbered as in the layout: (blocks used,) each but ``starts`` (requests + 1,)."""

    block: Ints
    position: Ints
    parent: Ints
    next_request: Ints
    starts: Ints


def accesses(offsets: Ints, ids: Ints) -> Accesses:
    """From ragged prompts (row ``i`` owns ``ids[offsets[i]:offsets[i + 1]]``), in order of arrival.

    ids: chained: equal ones stand for equal blocks after equal blocks. A block and the one before it are of one run
    when they are used equally often, since whatever uses the block uses the one before it.
    """
    number = _dense(ids)
    uses = np.bincount(number)[number]
    begins = np.concatenate([[True], uses[1:] != uses[:-1]]) if len(ids) else np.zeros(0, dtype=bool)
    begins[offsets[:-1][np.diff(offsets) > 0]] = True
    begin = np.flatnonzero(begins)
    request = np.searchsorted(offsets, begin, side="right") - 1
    _, at, run = np.unique(number[begin], return_index=True, return_inverse=True)
    position = begin[at] - offsets[request[at]]
    parent = np.where(position > 0, run[at - 1], -1)
    size = np.diff(np.append(begin, len(ids)))[at]
    counts = np.bincount(request, minlength=len(offsets) - 1)
    starts = np.concatenate([[0], np.cumsum(counts)])
    backwards = np.repeat(starts[:-1] + starts[1:] - 1, counts) - np.arange(len(run))
    run = run[backwards].astype(np.int64)
    return Accesses(size, position, parent, run, starts, _next_request(run, request, len(offsets) - 1))


def _dense(ids: Ints) -> Ints:
    """Numbers from 0 on for ids, not all of them in use."""
    if len(ids) and int(ids.max()) - int(ids.min()) <= 8 * len(ids) + 1024:
        return ids - int(ids.min())
    return np.unique(ids, return_inverse=True)[1].astype(np.int64)


def _next_request(run: Ints, request: Ints, none: int) -> Ints:
    found = np.full(len(run), none, dtype=np.int64)
    by_run = np.argsort(run, kind="stable")
    same = run[by_run[1:]] == run[by_run[:-1]]
    found[by_run[:-1][same]] = request[by_run[1:][same]]
    return found


def block_by_block(found: Accesses) -> BlockAccesses:
    """Every block of every run."""
    size = found.size[found.run]
    ends = np.cumsum(size)
    nth = np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - size, size)  # of its run, from the last on
    first = np.cumsum(found.size + 1) - found.size - 1
    parent = np.where(found.parent >= 0, first[found.parent], -1)[found.run]
    block = np.repeat(first[found.run], size) + nth
    is_head = nth == np.repeat(size - 1, size)
    return BlockAccesses(
        block,
        np.repeat(found.position[found.run] + size - 1, size) - nth,
        np.where(is_head, np.repeat(parent, size), block + 1),
        np.repeat(found.next_request, size),
        np.concatenate([[0], ends])[found.starts],
    )
