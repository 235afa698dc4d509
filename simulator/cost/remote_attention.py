"""Attention over KV that lies on other instances (Lin et al., Infinite-LLM, arXiv:2401.02669, DistAttention)."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.cost.kv_reads import decode_curve
from simulator.cost.step import OperatorCost

LSE_BYTES = 4.0  # of a head's log-sum-exp, fp32


class RemoteAttention:
    """Prices of parts of an instance's attention. ``cost`` is that of one instance.

    Partial results over disjoint keys add up with their log-sum-exp, so that each instance computes over the keys it
    has and sends ``heads x dim`` elements per query and layer, whatever the context.
    """

    def __init__(self, cost: OperatorCost, instances: int) -> None:
        self.cost = cost
        operators, placed = cost.operators, cost.placed
        self._chunk = [(count, operators.prefill_attention(shape)) for shape, count in cost.attention_shapes]
        link = cost.gpu.group_link(placed.tp * instances)
        self._layers = sum(count for _, count in cost.attention_shapes)
        shape = cost.attention_shapes[0][0]
        row = shape.heads * shape.head_dim * placed.dtype_bytes
        self._latency = operators.send(0.0, link).seconds
        self._per_query = 2.0 * (operators.send(row + shape.heads * LSE_BYTES, link).seconds - self._latency)

    def seconds(self, num_decodes: int, context: int, chunks: Sequence[tuple[int, int]], share: float) -> float:
        """All layers over a share of the keys of a step's decodes and of its chunks' prefixes, launches apart."""
        total = 0.0
        if num_decodes:
            for shape, count in self.cost.attention_shapes:
                curve = decode_curve(self.cost.operators, shape, num_decodes)
                total += count * (curve.at(context * share) - curve.at(0.0))
        for new, old in chunks:
            for count, chunk in self._chunk:
                total += count * share * (chunk(new, old) - chunk(new, 0))
        return total

    def exchange_s(self, queries: int) -> float:
        """Queries to the others and partial results back, in every layer."""
        return self._layers * (2.0 * self._latency + queries * self._per_query)
