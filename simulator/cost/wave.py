"""The price of a wave: ranks with batches of their own step together, because they share the experts.

A step lasts as long as its slowest rank: ``serial_i + max(dense_i + attention_i + sampled_i + shared, CPU_i)``, where
``shared`` is the expert layers for the tokens of all ranks and the exchange around them. Ranks meet in every such
layer; their kernels being the same in all layers, who is slowest is so in each.

As vLLM 0.33 does (``v1/worker/dp_utils.py``): while the largest rank fits a CUDA graph, all ranks run that graph, so
dense layers and experts compute its padding on every rank, on those without work too (dummy batches); above the
captured sizes each rank runs what it has. Decodes run full graphs only when no rank prefills. The exchange of batch
sizes before a step runs on the CPUs, beside the step before; it is not priced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol

from simulator.cost.experts import balance
from simulator.cost.interface import Line, StepCost, uneven_cost
from simulator.cost.step import Entry, OperatorCost, Table
from simulator.model.architecture import Layer
from simulator.model.weights import format_of, linear_bytes


class Batch(NamedTuple):
    """What one rank computes in a step, as ``StepCost`` is asked. ``extra_s``: on top of it (swapping)."""

    num_decodes: int = 0
    context: int = 0
    windowed: int = 0
    growing: int = 0
    longest: int = 0
    squares: int = 0
    chunks: Sequence[tuple[int, int]] = ()
    num_sampled: int = 0
    extra_s: float = 0.0

    @property
    def works(self) -> bool:
        return bool(self.num_decodes or self.chunks)


class WaveCost(Protocol):
    """Prices steps of several ranks. Pure: the same arguments give the same seconds."""

    uneven: bool  # whether ``longest`` and ``squares`` matter
    rebalance_s: float  # moving experts to where their load says

    def decode(self, batches: Sequence[Batch], *, balanced: bool) -> Line:
        """Consecutive steps in which every rank decodes, or has nothing to do."""
        ...

    def mixed(self, batches: Sequence[Batch], *, balanced: bool) -> float:
        """One step, s. balanced: experts have been moved."""
        ...


def wave_cost(cost: StepCost) -> WaveCost:
    """``cost`` for ranks that step together."""
    return OperatorWaveCost(cost) if isinstance(cost, OperatorCost) else SlowestRank(cost)


class SlowestRank:
    """Ranks that share nothing but the time: each is priced alone, and the slowest decides."""

    rebalance_s = 0.0

    def __init__(self, cost: StepCost) -> None:
        self._cost = cost
        self._uneven = uneven_cost(cost)
        self.uneven = self._uneven is not None

    def decode(self, batches: Sequence[Batch], *, balanced: bool = True) -> Line:
        del balanced
        lines = []
        for b in batches:
            if b.num_decodes and self._uneven is None:
                lines.append(self._cost.decode(b.num_decodes, b.context, b.windowed, b.growing))
            elif b.num_decodes and self._uneven is not None:
                lines.append(self._uneven.decode(b.num_decodes, b.context, b.windowed, b.growing, b.longest, b.squares))
        return slowest(lines)

    def mixed(self, batches: Sequence[Batch], *, balanced: bool = True) -> float:
        del balanced
        return max(self._one(b) if b.works else b.extra_s for b in batches)

    def _one(self, b: Batch) -> float:
        if self._uneven is None:
            return b.extra_s + self._cost.mixed(b.num_decodes, b.context, b.windowed, b.chunks, b.num_sampled)
        return b.extra_s + self._uneven.mixed(
            b.num_decodes, b.context, b.windowed, b.chunks, b.num_sampled, b.longest, b.squares
        )


def slowest(lines: Sequence[Line]) -> Line:
    """The largest of straight lines, for as long as it is the largest and none of them bends."""
    if len(lines) == 1:
        return lines[0]
    top = max(lines, key=lambda line: (line.first, line.increment))
    steps = min(line.valid_steps for line in lines)
    for line in lines:
        if line.increment > top.increment:
            crossing = (top.first - line.first) / (line.increment - top.increment)
            if crossing < steps:
                steps = min(steps, int(crossing) + 1)
    return Line(top.first, top.increment, steps)


class _Dense(OperatorCost):
    """Everything of a step that its tokens decide, but for experts."""

    def _expert_entries(self, layer: Layer, tokens: int) -> list[Entry]:
        del layer, tokens
        return []

    def seconds(self, tokens: int) -> float:
        return self._by_tokens[tokens]


class _Attention(OperatorCost):
    """Attention and what follows the last layer."""

    def token_entries(self, tokens: int) -> list[Entry]:
        del tokens
        return []


class OperatorWaveCost:
    """The ranks of a model with ``data_parallel_size``, from its operators. ``rank``: a price that ``cost`` gives."""

    def __init__(self, cost: OperatorCost) -> None:
        self._cost, self._overhead, self._launches = cost, cost.overhead, cost._launches  # noqa: SLF001 - its other half
        kernels_alone = replace(
            cost.overhead, gpu_gap_s=0.0, cpu_step_s=0.0, cpu_per_sequence_s=0.0, launch_s=0.0, async_scheduling=True
        )
        built = cost.model, cost.operators, cost.deployment, kernels_alone
        self._dense, self._attention = _Dense(*built), _Attention(*built)
        self.uneven = cost.uneven
        self._graph_top = (cost.overhead.graph_sizes or (0,))[-1]
        layers = [cost.expert_layers(eplb=eplb) for eplb in (False, cost.placed.eplb)]  # before and after balancing
        self._layers = [[(count, kinds[x]) for x, count in cost.layers.items() if x in kinds] for kinds in layers]
        self._experts: list[Table[float]] = [self._expert_table(which) for which in (0, 1)]
        self._exchanges: list[list[Table[float]]] = [
            [Table(lambda rows, x=x: sum(p.seconds for _, p in x.exchange(rows))) for _, x in kinds]  # type: ignore[misc]
            for kinds in self._layers
        ]
        self.rebalance_s = self._rebalance_s() if cost.placed.eplb else 0.0

    def _expert_table(self, which: int) -> Table[float]:
        kinds = self._layers[which]
        return Table(lambda tokens: sum(count * x.experts(tokens).seconds for count, x in kinds))

    def shared_s(self, most: int, tokens: int, *, balanced: bool) -> float:
        """Expert layers and their exchange, s. most: tokens of the largest rank; tokens: of all ranks."""
        seconds = self._experts[balanced][tokens]
        for (count, layer), table in zip(self._layers[balanced], self._exchanges[balanced], strict=True):
            seconds += count * table[layer.rows(most, tokens)]
        return seconds

    def decode(self, batches: Sequence[Batch], *, balanced: bool) -> Line:
        """See ``WaveCost``."""
        tokens, shared = self._tokens(batches, balanced=balanced)
        overhead, lines = self._overhead, []
        graph = overhead.full_graphs and max(tokens) <= self._graph_top
        for b, padded in zip(batches, tokens, strict=True):
            n = b.num_decodes
            if not n:
                continue
            line = self._attention.decode(n, b.context, b.windowed, b.growing, b.longest, b.squares)
            gpu = line.first + self._dense.seconds(padded) + shared
            serial, floor = overhead.serial_s(n), overhead.floor_s(n, 1 if graph else self._launches(padded))
            if gpu >= floor:
                lines.append(Line(serial + gpu, line.increment, line.valid_steps))
            else:
                steps = int((floor - gpu) / line.increment) + 1 if line.increment > 0 else line.valid_steps
                lines.append(Line(serial + floor, 0.0, min(steps, line.valid_steps)))
        return slowest(lines)

    def mixed(self, batches: Sequence[Batch], *, balanced: bool) -> float:
        """See ``WaveCost``."""
        if not any(b.chunks for b in batches):
            if not any(b.num_decodes for b in batches):
                return max(b.extra_s for b in batches)
            return self.decode(batches, balanced=balanced).first + max(b.extra_s for b in batches)
        tokens, shared = self._tokens(batches, balanced=balanced)
        overhead, longest = self._overhead, 0.0
        for b, padded in zip(batches, tokens, strict=True):
            seconds = 0.0
            if b.works:
                seconds = self._attention.mixed(
                    b.num_decodes, b.context, b.windowed, b.chunks, b.num_sampled, b.longest, b.squares
                )
            seconds += self._dense.seconds(padded) + shared
            sequences = b.num_decodes + len(b.chunks)
            floor = overhead.floor_s(sequences, self._launches(padded))
            longest = max(longest, b.extra_s + overhead.serial_s(sequences) + max(seconds, floor))
        return longest

    def _tokens(self, batches: Sequence[Batch], *, balanced: bool) -> tuple[list[int], float]:
        """Tokens that each rank computes, padding and dummies included, and the seconds of what they share."""
        counts = [b.num_decodes + sum([new for new, _ in b.chunks]) for b in batches]
        most = max(counts)
        if most <= self._graph_top:
            most = self._overhead.padded(most)
            counts = [most] * len(counts)
        else:
            counts = [max(n, 1) for n in counts]
        return counts, self.shared_s(most, sum(counts), balanced=balanced)

    def _rebalance_s(self) -> float:
        """Experts that the rank with most of them to come receives over its link, as when EPLB first replaces the
        linear placement. Popularity does not change here, so this bounds what later rounds cost.
        """
        cost, p = self._cost, self._cost.placed
        size = 0.0
        for layer in cost.layers:
            if layer.moe is None:
                continue
            here = tuple(i for i, other in enumerate(cost.model.layers) if other == layer)
            moe = layer.moe
            found = balance(moe.num_experts, moe.top_k, p.skew, p.expert_ranks, p.redundant, here, eplb=True)
            each = sum(
                linear_bytes(x, format_of(x, p.dtype, p.quantization), p.dtype_bytes) / x.copies
                for x in p.linears(cost.model, layer)
                if x.role == "expert"
            )
            size += found.moved * each
        return cost.operators.send(size, cost.gpu.group_link(p.expert_ranks)).seconds
