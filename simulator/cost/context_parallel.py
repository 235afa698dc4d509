"""Context (sequence) parallelism: the tokens of a request cut over GPUs, each of which keeps a share of its KV.

Prompts: ring attention (Liu et al., arXiv:2310.01889). Every rank keeps the queries of its tokens; blocks of keys and
values go round, and while a rank computes with one block the next arrives. A round lasts as long as the longer of the
two, so nothing is lost while a block's attention takes longer than its transfer: for ``c`` tokens a rank and full
blocks ``4 d c^2`` FLOPs against ``4 d c`` bytes in 16 bits, ``c >= FLOP/s over bandwidth`` (section 3 there). The KV of
tokens computed before goes round as well.

Causal masks: with *contiguous* cuts some rank has a full block to compute in every round but the first, so half of the
work is spent waiting. *Striped* cuts (Brandon et al., arXiv:2311.09431) give everybody a causal half block in each;
pairs of chunks from both ends, as vLLM cuts, come to the same.

Decodes: every rank attends over its share of the contexts and the partial results are merged by their log-sum-exp.
``decode_context_parallel_size`` cuts the KV that tensor-parallel ranks would otherwise repeat: queries of as many ranks
are gathered first (vLLM 0.33, ``v1/attention/ops/common.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from simulator.cost.operators import ChunkSeconds, Curve, Operators, sum_curves
from simulator.cost.shapes import AttentionShape, attention_shape
from simulator.cost.step import OperatorCost, Table
from simulator.hardware.gpu import Link
from simulator.model.architecture import Layer

LSE_BYTES = 4.0  # of a head's log-sum-exp, fp32
PARTIAL_BYTES = 4.0  # per element of the output that rounds add to


def ring_seconds(ranks: int, own_s: float, later_s: float, transfer_s: float) -> float:
    """Attention of one layer over ``ranks`` rounds, s: a rank's own block, then those of the others as they come.

    own_s, later_s: computing one block. transfer_s: sending one on to the next rank, beside the computation.
    """
    if ranks == 1:
        return own_s
    return max(own_s, transfer_s) + (ranks - 2) * max(later_s, transfer_s) + later_s


@dataclass(frozen=True, slots=True)
class Sends:
    """Seconds of a message as a straight line in its bytes."""

    latency_s: float
    s_per_byte: float

    def __call__(self, size_bytes: float) -> float:
        return self.latency_s + self.s_per_byte * size_bytes


def sends(operators: Operators, link: Link) -> Sends:
    """What point-to-point messages take over ``link``."""
    latency = operators.send(0.0, link).seconds
    return Sends(latency, (operators.send(1e9, link).seconds - latency) / 1e9)


def stretched(curve: Curve, ranks: int, extra_s: float) -> Curve:
    """``curve`` where every rank reads its share of the contexts, and ``extra_s`` on top."""
    return Curve(
        tuple(base + extra_s for base in curve.base),
        tuple(slope / ranks for slope in curve.slope),
        tuple(knot * ranks for knot in curve.knots),
    )


class ContextParallelCost(OperatorCost):
    """Prices steps of an engine with ``prefill_context_parallel_size`` or ``decode_context_parallel_size`` above 1.

    A chunk's tokens are cut over the prefill ranks. Decoding tokens are computed by all of them alike, as in vLLM; the
    elastic engine spreads them over ``Deployment.context_parallel_masters`` of the ranks instead (LoongServe,
    section 5.3). How unequal contexts are does not matter to the price.
    """

    def _use(self, stage: tuple[tuple[Layer, ...], bool, bool]) -> None:
        super()._use(stage)
        p = self.placed
        self._link = sends(self.operators, self.gpu.group_link(p.tp * p.pcp))
        self._tensor_link = sends(self.operators, self.gpu.group_link(p.tp))
        self.blocks = [None for _ in self.attention_shapes]
        self.uneven, self._lag = False, 0.0
        cuts = p.tp, p.tp // p.dcp
        self.gathered_shapes: dict[AttentionShape, AttentionShape] = {  # with the heads of all ``dcp`` ranks
            own: gathered
            for layer in self.layers
            for own, gathered in [[attention_shape(layer.attention, n, p.kv_dtype, p.dtype_bytes) for n in cuts]]
        }
        prices = [(count, self.chunk_price(shape)) for shape, count in self.attention_shapes]
        self._chunk_times, self._chunk = prices[0] if len(prices) == 1 else (1, _summed(prices))
        self._prefill_launch *= p.pcp

    # -- prompts ------------------------------------------------------------------------------------------------

    def chunk_price(self, shape: AttentionShape) -> ChunkSeconds:
        """One layer, all rounds, kernel launches apart."""
        chunk, p = self.operators.prefill_attention(shape), self.placed
        if p.pcp > 1:
            chunk = self._ring(shape, chunk)
        return self._gathered(shape, chunk) if p.dcp > 1 else chunk

    def _ring(self, shape: AttentionShape, chunk: ChunkSeconds) -> ChunkSeconds:
        p, link, kv_bytes = self.placed, self._link, shape.bytes_per_context
        ranks, striped = p.pcp, p.striped
        merge = Table(self._merge_seconds(shape))

        def seconds(new: int, computed: int) -> float:
            queries, before = -(-new // ranks), -(-computed // ranks)
            own = chunk(queries, before)
            full = own if striped else chunk(queries, before + queries // 2)  # as many pairs as a block without mask
            return ring_seconds(ranks, own, full + merge[queries], link(kv_bytes * (queries + before)))

        return seconds

    def _merge_seconds(self, shape: AttentionShape) -> Callable[[int], float]:
        """Adding a round's output to those before: read both, write one."""
        per_query = shape.heads * shape.head_dim * (self.placed.dtype_bytes + 2 * PARTIAL_BYTES)
        return lambda queries: self.operators.elementwise(queries * per_query, 1).seconds

    def _gathered(self, shape: AttentionShape, chunk: ChunkSeconds) -> ChunkSeconds:
        """New tokens attend to each other on every tensor-parallel rank; to cached ones where those lie."""
        exchange = Table(lambda new: self._gather_seconds(shape, new, shape.bytes_per_new / 2.0))
        return lambda new, computed: chunk(new, computed) + (exchange[new] if computed else 0.0)

    def _gather_seconds(self, shape: AttentionShape, queries: int, row: float) -> float:
        """Queries of ``dcp`` ranks to each of them, partial results and their log-sum-exp back. row: bytes of one."""
        p = self.placed
        return self._tensor_link(queries * (p.dcp - 1) * row) + self._tensor_link(
            queries * (p.dcp - 1) * (row + shape.heads * LSE_BYTES)
        )

    # -- decodes ------------------------------------------------------------------------------------------------

    def _attention_curves(self, num_decodes: int) -> tuple[Curve, Curve]:
        full = []
        for shape, count in self.attention_shapes:
            curve = self.operators.decode_attention(self.gathered_shapes[shape], num_decodes)
            extra = self.exchange_seconds(shape, num_decodes)
            full.append((count, stretched(curve, self.placed.context_ranks, extra)))
        return sum_curves(full), sum_curves([])

    def exchange_seconds(self, shape: AttentionShape, num_decodes: int) -> float:
        """Merging the partial attention of one layer of a decode batch, s."""
        p, row = self.placed, shape.bytes_per_sequence / 2.0  # of queries in and results out
        seconds = self._gather_seconds(shape, num_decodes, row) if p.dcp > 1 else 0.0
        if p.pcp == 1:
            return seconds
        result = row + shape.heads * LSE_BYTES
        others = p.pcp - 1
        if p.masters:  # queries to the others, their results back
            return seconds + self._link(-(-num_decodes // p.masters) * others * row) + self._link(num_decodes * result)
        return seconds + 2 * self._link(num_decodes * others / p.pcp * result)  # reduce-scatter, all-gather

    def _decode_rows(self, num_decodes: int) -> int:
        return -(-num_decodes // (self.placed.masters or 1))

    def rank_tokens(self, num_decodes: int, chunks: Sequence[tuple[int, int]]) -> int:
        """Tokens of a step that one rank computes."""
        ranks = self.placed.pcp
        return self._decode_rows(num_decodes) + sum([-(-new // ranks) for new, _ in chunks])

    def mixed(  # noqa: PLR0917
        self, num_decodes: int, context: int, windowed: int, chunks: Sequence[tuple[int, int]], num_sampled: int,
        longest: int = 0, squares: int = 0,
    ) -> float:  # fmt: skip
        """See ``StepCost``."""
        if not chunks:
            return self.decode(num_decodes, context, windowed, 0, longest, squares).first
        chunk = self._chunk
        tokens, attention = self.rank_tokens(num_decodes, chunks), 0.0
        for new, computed in chunks:
            attention += chunk(new, computed)
        seconds = attention * self._chunk_times + self._mixed_gpu[tokens] + self._by_sampled[num_sampled]
        if num_decodes:
            seconds += self._mixed_decode[num_decodes][0].at(context)
        serial, floor = self._cpu[num_decodes + len(chunks)]
        floor += self._launch_eager if tokens > self._graph_top else self._launch_pieces
        return serial + max(seconds, floor)


def _summed(prices: Sequence[tuple[int, ChunkSeconds]]) -> ChunkSeconds:
    return lambda new, computed: sum([count * price(new, computed) for count, price in prices])


@lru_cache(maxsize=8)
def elastic_costs(cost: OperatorCost) -> ElasticCosts:
    """One for all replicas of a group."""
    return ElasticCosts(cost)


class ElasticCosts:
    """Prices of the groups that an elastic engine's instances may form; ``cost`` is that of all of them together.

    A batch of prompts of ``L`` tokens takes ``a + b sum(L) + c sum(L^2)`` on each size of group (LoongServe, section
    5.2): fitted to three prices, for choosing among groups. What a batch then takes is priced itself.
    """

    FITTED_TOKENS = (1024, 16384, 131072)

    def __init__(self, cost: OperatorCost) -> None:
        self._cost = cost
        self._on: dict[tuple[int, int], OperatorCost] = {}
        self._fits: Table[tuple[float, float, float]] = Table(self._fit)
        self._masters: dict[tuple[int, int], int] = {}
        placed = cost.placed
        self._link = sends(cost.operators, cost.gpu.group_link(placed.tp * placed.pcp))
        self._kv_bytes = sum(shape.bytes_per_context * count for shape, count in cost.attention_shapes)  # on one GPU

    def on(self, instances: int, masters: int = 0) -> OperatorCost:
        """Steps on so many instances."""
        found = self._on.get((instances, masters))
        if found is None:
            cost = self._cost
            deployment = replace(
                cost.deployment, prefill_context_parallel_size=instances, context_parallel_masters=masters
            )
            cut = instances * cost.placed.dcp > 1
            kind = ContextParallelCost if cut else OperatorCost
            found = self._on[instances, masters] = kind(cost.model, cost.operators, deployment, cost.overhead)
        return found

    def prefill_seconds(self, instances: int, tokens: int, squares: int) -> float:
        """About what a batch of prompts takes; squares: sum of their squared lengths."""
        a, b, c = self._fits[instances]
        return a + b * tokens + c * squares

    def _fit(self, instances: int) -> tuple[float, float, float]:
        x, y, z = self.FITTED_TOKENS
        at_x, at_y, at_z = (self.on(instances).mixed(0, 0, 0, [(n, 0)], 1) for n in self.FITTED_TOKENS)
        low, high = (at_y - at_x) / (y - x), (at_z - at_y) / (z - y)
        c = max((high - low) / (z - x), 0.0)
        b = max(low - c * (x + y), 0.0)
        return max(at_x - b * x - c * x * x, 0.0), b, c

    def decode_seconds(self, instances: int, num_decodes: int) -> float:
        """A decode step over hardly any context."""
        return self.decode_step(instances, num_decodes, num_decodes)

    def decode_step(self, instances: int, num_decodes: int, context: float) -> float:
        """A decode step, its tokens computed by as many masters as make it shortest.

        context: what it would be if every instance held as much as the one that holds most.
        """
        masters = self._masters.get((instances, num_decodes))
        if masters is None:
            known = [(self._decode(instances, n, num_decodes, num_decodes), n) for n in range(1, instances + 1)]
            masters = self._masters[instances, num_decodes] = min(known)[1]
        return self._decode(instances, masters, num_decodes, int(context))

    def _decode(self, instances: int, masters: int, num_decodes: int, context: int) -> float:
        return self.on(instances, masters if instances > 1 else 0).decode(num_decodes, context, 0, 0).first

    def move_seconds(self, tokens: float) -> float:
        """KV of an instance goes to others: each of its GPUs sends its part."""
        return self._link(tokens * self._kv_bytes) if tokens > 0 else 0.0

    def keep_seconds(self, tokens: int, instances: int, kept: int) -> float:
        """``kept`` of the instances that compute a batch write the KV of all of them: read from what the ring passes
        by, written to the cache; their own share is in the batch's price.
        """
        more = tokens / kept - tokens / instances
        return self._cost.operators.elementwise(2.0 * more * self._kv_bytes, 1).seconds if more > 0 else 0.0
