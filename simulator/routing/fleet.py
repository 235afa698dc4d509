"""What routers may know of the replicas: a read-only picture, kept up to date by the cluster."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from math import inf

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Fleet:
    """One number per replica, indexed by replica. Routers read; the cluster writes.

    Two kinds of knowledge, as real routers have them. What passes through the router is exact: ``in_flight`` requests
    and their tokens. What engines report (``waiting``, ``running``, ``free_blocks``) is as old as the last scrape;
    ``queued_tokens`` is what they reported plus what has been sent to them since.
    """

    def __init__(
        self,
        size: int,
        *,
        weight: Sequence[float],
        num_blocks: Sequence[int],
        block_size: Sequence[int] | None = None,
        watts: Sequence[float] | None = None,
        metrics_interval_s: float = 0.0,
        scrape: Callable[[float], None] | None = None,
    ) -> None:
        self.size = size
        self.weight: Floats = np.asarray(weight, dtype=np.float64)
        self.watts: Floats = np.asarray([1.0] * size if watts is None else watts, dtype=np.float64)  # above idle, busy
        self.num_blocks: Ints = np.asarray(num_blocks, dtype=np.int64)
        self.block_size: Ints = np.asarray([16] * size if block_size is None else block_size, dtype=np.int64)  # tokens
        # Counters change with every request and are read all at once: an array for one at a time, numpy's view of it.
        self.counts, self.token_counts = array("q", bytes(8 * size)), array("q", bytes(8 * size))
        self.in_flight: Ints = np.frombuffer(self.counts, dtype=np.int64)  # requests
        self.in_flight_tokens: Ints = np.frombuffer(self.token_counts, dtype=np.int64)  # prompt tokens of those
        self.queued_tokens: Ints = np.zeros(size, dtype=np.int64)  # prompt tokens still to compute
        self.waiting: Ints = np.zeros(size, dtype=np.int64)  # requests
        self.running: Ints = np.zeros(size, dtype=np.int64)  # requests
        self.free_blocks: Ints = self.num_blocks.copy()
        self._interval = metrics_interval_s
        self._scrape = scrape
        self._scraped = -inf

    def sent(self, replica: int, prompt_tokens: int) -> None:
        """The cluster has routed a request to ``replica``."""
        self.counts[replica] += 1
        self.token_counts[replica] += prompt_tokens

    def ended(self, replica: int, prompt_tokens: int) -> None:
        """That request is no longer there: it has ended, or it went elsewhere."""
        self.counts[replica] -= 1
        self.token_counts[replica] -= prompt_tokens

    def refresh(self, now: float) -> None:
        """Ask the engines again if the last answer is older than the interval."""
        if self._scrape is not None and now - self._scraped >= self._interval:
            self._scraped = now
            self._scrape(now)

    @property
    def kv_usage(self) -> Floats:
        """Share of the KV blocks in use, when last scraped."""
        return 1.0 - self.free_blocks / self.num_blocks


def least(values: NDArray[np.float64] | Ints, candidates: Ints) -> int:
    """The candidate with the smallest value, the first of them on a tie."""
    if len(candidates) == len(values):
        return int(values.argmin())
    return int(candidates[values[candidates].argmin()])


class Among:
    """The candidates of a decision as masks, kept for as long as the cluster hands out the same array."""

    __slots__ = ("_bits", "_candidates", "_mask", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self._candidates: Ints | None = None

    def _learn(self, candidates: Ints) -> None:
        self._candidates = candidates
        self._mask = np.zeros(self.size, dtype=np.bool_)
        self._mask[candidates] = True
        self._bits = int.from_bytes(np.packbits(self._mask, bitorder="little").tobytes(), "little")

    def mask(self, candidates: Ints) -> NDArray[np.bool_]:
        """(size,) True for a candidate."""
        if candidates is not self._candidates:
            self._learn(candidates)
        return self._mask

    def bits(self, candidates: Ints) -> int:
        """Bit ``r`` is set for candidate ``r``."""
        if candidates is not self._candidates:
            self._learn(candidates)
        return self._bits
