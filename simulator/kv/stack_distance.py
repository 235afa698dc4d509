"""LRU at every capacity in one pass, by stack distances.

A block is held when fewer different blocks than the capacity were used since its last use, its own prompt's not
counted. Mattson et al. (1970), 10.1147/sj.92.0078; distances by summing over ranks in a wavelet matrix, O(n log n) in
the number of runs that prompts consist of.
"""

from __future__ import annotations

import numpy as np

from simulator.kv.accesses import Accesses, Ints

NEVER = np.iinfo(np.int64).max // 2


def stack_distances(found: Accesses) -> Ints:
    """Different blocks used from the last use of each run's first block to the beginning of the request, (accesses,).

    The run's next block is one farther, and so on. ``NEVER``: it was not used before.
    """
    previous = _previous(found.run)
    again = np.flatnonzero(previous >= 0)
    since = previous[again]
    start = np.repeat(found.starts[:-1], np.diff(found.starts))[again]
    size = found.size[found.run]
    # Runs used since then, each at its first use since: uses before ``start`` whose own previous use lies before; and
    # all uses up to then are such.
    first_uses = weight_below(previous + 1, size, start, since + 1)
    distance = np.full(len(found.run), NEVER)
    distance[again] = first_uses - np.cumsum(size)[since]
    return distance


def lru_hits(found: Accesses, capacity: Ints) -> Ints:
    """Blocks of all prompts that LRU holds, (capacities,). No block is held without those before it."""
    distance = stack_distances(found)
    size = found.size[found.run]
    return np.array([np.clip(most - distance, 0, size).sum() for most in capacity.tolist()], dtype=np.int64)


def weight_below(values: Ints, weights: Ints, end: Ints, bound: Ints) -> Ints:
    """Sums of ``weights[:end[q]]`` where ``values[:end[q]]`` are less than ``bound[q]``, (queries,).

    values: non-negative. A wavelet matrix walked from the highest bit: Claude, Navarro, Ordonez (2015),
    10.1016/j.is.2014.06.002.
    """
    low, high, total = np.zeros_like(end), end.astype(np.int64), np.zeros_like(end)
    for bit in range(max(int(max(values.max(initial=0), bound.max(initial=0))).bit_length(), 1) - 1, -1, -1):
        one = (values >> bit & 1).astype(bool)
        zeros = np.concatenate([[0], np.cumsum(~one)])
        weight = np.concatenate([[0], np.cumsum(weights * ~one)])
        wanted = (bound >> bit & 1).astype(bool)
        total += np.where(wanted, weight[high] - weight[low], 0)
        low = np.where(wanted, zeros[-1] + low - zeros[low], zeros[low])
        high = np.where(wanted, zeros[-1] + high - zeros[high], zeros[high])
        values, weights = (np.concatenate([column[~one], column[one]]) for column in (values, weights))
    return total


def _previous(run: Ints) -> Ints:
    """Access that used the run before; -1: none."""
    found = np.full(len(run), -1, dtype=np.int64)
    by_run = np.argsort(run, kind="stable")
    same = run[by_run[1:]] == run[by_run[:-1]]
    found[by_run[1:][same]] = by_run[:-1][same]
    return found
