"""Hit ratio against capacity: what a prefix cache would have held, without running an engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from simulator.kv.accesses import Accesses, BlockAccesses, Ints, block_by_block
from simulator.kv.eviction import EVICTIONS
from simulator.kv.eviction.policy import Eviction
from simulator.kv.eviction.runs import Runs
from simulator.kv.stack_distance import lru_hits

Floats = NDArray[np.float64]
WAITING = 64  # requests that a policy sees that looks ahead into the queue


@dataclass(frozen=True)
class Curve:
    """Hit ratios (capacities,) of one policy.

    blocks: of all blocks; prefix: of those held together with all before them, which alone an engine can use.
    """

    policy: str
    capacity: Ints
    blocks: Floats
    prefix: Floats


def hit_curve(found: Accesses, policy: str, capacity: Ints, waiting: int = WAITING) -> Curve:
    """Exact. LRU in one pass over the trace; others in one per capacity, on runs of blocks where they have that form.

    waiting: requests that wait while one is served, for ``look-ahead``. Raises PolicyError for an unknown policy.
    """
    make = EVICTIONS.get(policy)
    runs: type[Runs] | None = vars(make).get("runs")  # its own: a class that derives from another decides otherwise
    if policy == "lru":
        both = lru_hits(found, capacity)
        hits = np.stack([both, both], axis=1)
    elif runs is None:
        blocks = block_by_block(found)
        hits = np.array([hits_by_blocks(blocks, make(size), waiting) for size in capacity.tolist()])
    else:
        layout = found.layout
        hits = np.array([hits_by_runs(found, runs(size, layout), waiting) for size in capacity.tolist()])
    ratios = hits.reshape(-1, 2) / max(found.num_used, 1)
    return Curve(policy, capacity, ratios[:, 0], ratios[:, 1])


def hits_by_runs(found: Accesses, cache: Runs, waiting: int = WAITING) -> tuple[int, int]:
    """Blocks held, and those held with all before them: each request looks its blocks up, then uses them all."""
    held = useful = 0
    size, run, next_request = found.size.tolist(), found.run.tolist(), found.next_request.tolist()
    for number, (begin, end) in enumerate(pairwise(found.starts.tolist())):
        cache.last_waiting = number + waiting
        whole = True
        for one in reversed(run[begin:end]):  # from the first block on
            here, unbroken = cache.found(one)
            held += here
            if whole:
                useful += unbroken
                whole = unbroken == size[one]
        for one, after in zip(run[begin:end], next_request[begin:end], strict=True):
            cache.use(one, after)
    return held, useful


def hits_by_blocks(found: BlockAccesses, cache: Eviction, waiting: int = WAITING) -> tuple[int, int]:
    """The same block by block."""
    held = useful = 0
    for number, rows in enumerate(_requests(found)):
        cache.last_waiting = number + waiting
        whole = True
        for block, *_ in reversed(rows):
            if block in cache:
                held += 1
                useful += whole
            else:
                whole = False
        for row in rows:
            cache.access(*row)
    return held, useful


def _requests(found: BlockAccesses) -> Iterator[list[tuple[int, int, int, int]]]:
    columns = (found.block, found.position, found.parent, found.next_request)
    for begin, end in pairwise(found.starts.tolist()):
        yield list(zip(*(column[begin:end].tolist() for column in columns), strict=True))


def capacities(found: Accesses, count: int = 9) -> Ints:
    """Where the curve rises: from a tenth of all that LRU can hit, and no less than the longest prompt, to all but a
    thousandth of it, evenly on a logarithmic scale."""
    most = max(found.num_blocks, 1)
    tried = np.unique(np.geomspace(1, most, 200).round().astype(np.int64))
    share = lru_hits(found, tried) / max(found.num_used - found.num_blocks, 1)
    low, high = tried[np.searchsorted(share, (0.1, 0.999)).clip(max=len(tried) - 1)].tolist()
    low = max(low, min(int((found.position + found.size).max(initial=1)), high))
    return np.unique(np.geomspace(max(low, 1), high, count).round().astype(np.int64))
