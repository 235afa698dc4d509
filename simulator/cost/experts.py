"""How unevenly experts are visited, and where they are put: the busiest rank sets the time of an expert layer.

Popularity follows Zipf's law with exponent ``skew`` (0: all alike), in an order drawn once per layer. What a rank
computes is the *expected* number of visits to its experts: which of them a batch really visits varies around it, so a
small batch is more uneven than is said here.

Placements: *linear*, vLLM's own, gives rank ``r`` the ``r``-th slice of the experts. *EPLB* copies the experts with the
most visits per copy until the redundant places are full, and packs copies onto ranks greedily, the heaviest first, each
rank taking equally many (DeepSeek's Expert Parallelism Load Balancer, github.com/deepseek-ai/EPLB). Copies of an expert
share its visits evenly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
SEED = 20250227  # of the order in which the experts of a layer are popular; any number would do


def expert_loads(num_experts: int, top_k: int, skew: float, layer: int = 0) -> Floats:
    """(num_experts,) how often a token visits each expert; sums to ``top_k``.

    In proportion to ``rank^-skew``, but a token visits an expert once at most: what the most popular ones cannot take
    goes to the others in proportion.
    """
    weight = np.arange(1, num_experts + 1, dtype=np.float64) ** -skew
    loads = np.zeros(num_experts)
    full = 0  # the most popular experts, which every token visits
    while True:
        loads[:full] = 1.0
        loads[full:] = weight[full:] / weight[full:].sum() * (top_k - full) if full < num_experts else 0.0
        beyond = int((loads[full:] > 1.0).sum())
        if not beyond:
            break
        full += beyond
    order = np.random.default_rng([SEED, layer]).permutation(num_experts)
    found: Floats = loads[order]
    return found


def linear_placement(num_experts: int, num_ranks: int, redundant: int = 0) -> Ints:
    """(num_ranks, places) expert in each place; redundant places hold the first experts once more, as in vLLM."""
    return (np.arange(num_experts + redundant) % num_experts).reshape(num_ranks, -1)


def eplb_placement(loads: Floats, num_places: int, num_ranks: int) -> Ints:
    """(num_ranks, places) expert in each place; ``num_places`` in all, a multiple of ``num_ranks``."""
    experts = list(range(len(loads)))
    copies = np.ones(len(loads))
    for _ in range(num_places - len(loads)):
        most = int(np.argmax(loads / copies))
        copies[most] += 1
        experts.append(most)
    each = np.array([loads[e] / copies[e] for e in experts])
    places = num_places // num_ranks
    ranks: list[list[int]] = [[] for _ in range(num_ranks)]
    total = np.zeros(num_ranks)
    for i in np.argsort(-each, kind="stable").tolist():
        lightest = int(np.argmin(total))
        ranks[lightest].append(experts[i])
        total[lightest] += each[i]
        if len(ranks[lightest]) == places:
            total[lightest] = np.inf
    return np.array(ranks, dtype=np.int64)


def rank_loads(loads: Floats, placement: Ints) -> Floats:
    """(num_ranks,) visits per token to each rank's experts."""
    copies = np.bincount(placement.ravel(), minlength=len(loads))
    found: Floats = (loads / copies)[placement].sum(axis=1)
    return found


@dataclass(frozen=True, slots=True)
class Balance:
    """What a placement comes to, averaged over layers.

    busiest: visits to the busiest rank over those to the average one, at least 1.
    moved: places of a rank, in all layers together, whose expert another rank must send when EPLB replaces the linear
    placement; of the rank that receives most.
    """

    busiest: float
    moved: float = 0.0


@cache
def balance(
    num_experts: int, top_k: int, skew: float, num_ranks: int, redundant: int, layers: tuple[int, ...], *, eplb: bool
) -> Balance:
    """Of the layers with these numbers."""
    busiest, moved = 0.0, np.zeros(num_ranks)
    placement = before = linear_placement(num_experts, num_ranks, redundant)
    here = [set(row) for row in before.tolist()]
    for layer in layers:
        loads = expert_loads(num_experts, top_k, skew, layer)
        if eplb:
            placement = eplb_placement(loads, num_experts + redundant, num_ranks)
            moved += [len(set(row) - mine) for row, mine in zip(placement.tolist(), here, strict=True)]
        found = rank_loads(loads, placement)
        busiest += float(found.max() / found.mean())
    return Balance(max(busiest / max(len(layers), 1), 1.0), float(moved.max()))
