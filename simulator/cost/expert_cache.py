"""Experts that do not all fit into GPU memory: how many a step has to fetch from the host.

A small simulation per batch size: every sequence draws its experts, layer by layer, and a cache in GPU memory serves
them. A sequence has favourites of its own (Zipf's law over an order of experts drawn per sequence and layer, exponent
``sequence_skew``) on top of what is popular with all (``skew``); it lasts ``SEQUENCE`` tokens and another takes its
place. That experts are reused within a sequence is what MoE-Infinity found and uses (arXiv:2401.14361, section 3).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Policy = Literal["lru", "popular", "activation-aware"]
SEED = 20240125  # of the draws; any number would do
SEQUENCE = 64  # tokens until a sequence makes place for another
WARM, MEASURED = 64, 96  # steps


@dataclass(frozen=True, slots=True)
class ExpertMix:
    """Who visits what. layers: with experts; slots: experts that the cache holds, of all layers together."""

    layers: int
    num_experts: int
    top_k: int
    slots: int
    skew: float
    sequence_skew: float


@cache
def misses_per_layer(mix: ExpertMix, policy: Policy, sequences: int) -> float:
    """Experts that a step of one token of each of so many sequences fetches per layer, on average.

    lru: of all layers together, least recently used first. popular: the most popular ones stay, the others pass
    through. activation-aware: what the running sequences have visited least gives way (MoE-Infinity, section 4.2).
    """
    cached = _CACHES[policy](mix)
    fetched = 0
    for step, visits in enumerate(_visits(mix, sequences)):
        found = cached(visits)
        if step >= WARM:
            fetched += found
    return fetched / (MEASURED * mix.layers)


@cache
def touched_per_layer(mix: ExpertMix, sequences: int) -> float:
    """Different experts that such a step visits per layer, on average."""
    return float(np.mean([_union(visits).sum(axis=1).mean() for visits in _visits(mix, sequences)]))


def _visits(mix: ExpertMix, sequences: int) -> Iterator[Bools]:
    """Per step a mask (sequences, layers, experts): the ``top_k`` largest of log-weights with Gumbel noise, which is
    drawing without replacement by the weights (Efraimidis and Spirakis, doi:10.1016/j.ipl.2005.11.003)."""
    rng = np.random.default_rng([SEED, sequences])
    shape = (mix.layers, mix.num_experts)

    def order(count: int) -> Floats:
        ranks = rng.permuted(np.broadcast_to(np.arange(1.0, mix.num_experts + 1), (count, *shape)), axis=2)
        return np.asarray(np.log(ranks))

    popular, own = -mix.skew * order(1), -mix.sequence_skew * order(sequences)
    for step in range(WARM + MEASURED):
        over = np.flatnonzero((step + np.arange(sequences) * SEQUENCE // sequences) % SEQUENCE == 0)
        own[over] = -mix.sequence_skew * order(len(over))
        drawn = popular + own + rng.gumbel(size=own.shape)
        limit = np.partition(drawn, -mix.top_k, axis=2)[:, :, -mix.top_k, None]
        yield drawn >= limit


def _union(visits: Bools) -> Bools:
    return np.asarray(visits.any(axis=0))


Cache = Callable[[Bools], int]  # a step's visits -> experts fetched


def _lru(mix: ExpertMix) -> Cache:
    held: OrderedDict[tuple[int, int], None] = OrderedDict()

    def step(visits: Bools) -> int:
        missed = 0
        for layer, experts in enumerate(_union(visits)):
            for expert in np.flatnonzero(experts).tolist():
                key = (layer, expert)
                if key in held:
                    held.move_to_end(key)
                    continue
                missed += 1
                held[key] = None
                if len(held) > mix.slots:
                    held.popitem(last=False)
        return missed

    return step


def _popular(mix: ExpertMix) -> Cache:
    """The first steps say what is popular."""
    seen = np.zeros((mix.layers, mix.num_experts))
    held: list[Bools] = []
    steps = 0

    def step(visits: Bools) -> int:
        nonlocal steps
        steps += 1
        if steps <= WARM:
            seen[:] += visits.sum(axis=0)
            return 0
        if not held:
            kept = np.zeros(seen.size, dtype=np.bool_)
            kept[np.argsort(-seen, axis=None, kind="stable")[: mix.slots]] = True
            held.append(kept.reshape(seen.shape))
        return int((_union(visits) & ~held[0]).sum())

    return step


def _activation_aware(mix: ExpertMix) -> Cache:
    held = np.zeros((mix.layers, mix.num_experts), dtype=np.bool_)
    counts: list[Floats] = []  # of each sequence
    ages: list[NDArray[np.int64]] = []

    def step(visits: Bools) -> int:
        sequences = len(visits)
        if not counts:
            counts.append(np.zeros(visits.shape))
            ages.append(np.arange(sequences) * SEQUENCE // sequences)
        counts[0][ages[0] % SEQUENCE == 0] = 0.0
        ages[0] += 1
        counts[0] += visits
        worth = counts[0].sum(axis=0)
        missed = 0
        for layer, experts in enumerate(_union(visits)):
            new = experts & ~held[layer]
            missed += int(new.sum())
            held[layer] |= new
            over = int(held.sum()) - mix.slots
            if over > 0:
                keep = worth + np.where(held, 0.0, np.inf)
                keep[layer, experts] = np.inf  # in use
                gone = np.argpartition(keep, over - 1, axis=None)[:over]
                held.reshape(-1)[gone[np.isfinite(keep.reshape(-1)[gone])]] = False
        return missed

    return step


_CACHES: dict[Policy, Callable[[ExpertMix], Cache]] = {
    "lru": _lru,
    "popular": _popular,
    "activation-aware": _activation_aware,
}
