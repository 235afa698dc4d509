"""The experts of one layer and the exchange of tokens around them, for all ranks that share them."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from simulator.cost.marlin import marlin_experts
from simulator.cost.operators import Operators, Price
from simulator.cost.placement import ALLGATHER, Placed
from simulator.model.architecture import Layer, Model
from simulator.model.formats import weight_format
from simulator.model.weights import Linear, format_of

SCALE_BYTES = 4.0 / 128.0  # per element of an activation in fp8: one fp32 scale for 128 of them


class ExpertLayer:
    """Prices of one kind of layer.

    Without data parallelism every rank holds the layer's input and sums its output with the others (an all-reduce that
    the dense layers need too), so nothing is exchanged here. With it:

    ``allgather_reducescatter`` (vLLM's default): each rank gathers the tokens of all, computes its experts, and a
    reduce-scatter sums what the ranks have.
    ``deepep_high_throughput``: a token goes once to each rank that holds one of its experts, in fp8 where experts
    multiply in fp8, and comes back in 16 bits. ``deepep_low_latency``: once per expert. Messages of a rank share its
    link; the busiest rank's are priced (DeepSeek-V3, arXiv:2412.19437, section 3.2).
    """

    def __init__(self, operators: Operators, model: Model, placed: Placed, layer: Layer, busiest: float = 1.0) -> None:
        """busiest: visits to the busiest rank over those to the average one, see ``cost/experts.py``."""
        assert layer.moe is not None
        self._ops, self._placed, self._busiest = operators, placed, busiest
        experts = [x for x in placed.linears(model, layer) if x.role == "expert"]
        self._experts: Linear = experts[0]
        self._shapes = [(x.out_features, x.in_features) for x in experts]
        self._format = format_of(experts[0], placed.dtype, placed.quantization)
        self._top_k = float(layer.moe.top_k)
        self._hidden = model.hidden_size
        ranks = placed.expert_ranks
        self._link = operators.gpu.group_link(ranks)
        self._exchanges = placed.dp > 1
        self._gathers = placed.all2all == ALLGATHER
        if placed.all2all == "deepep_low_latency":
            self._copies = self._top_k * (ranks - 1) / ranks
        else:
            self._copies = (ranks - 1) * (1.0 - (1.0 - 1.0 / ranks) ** self._top_k)

    def experts(self, tokens: int) -> Price:
        """The busiest rank's experts, for ``tokens`` of all ranks together."""
        x, wide, ops = self._experts, self._placed.dtype_bytes, self._ops
        visits = min(x.per_token * self._busiest, float(x.copies)) if self._busiest > 1.0 else x.per_token
        if self._format.name == "mxfp4_marlin":
            return marlin_experts(ops, tokens, visits, x.copies, self._shapes, wide)
        reached = self._top_k if self._gathers else None  # rows of tokens that only visit other ranks come along
        return ops.experts(tokens, visits, x.copies, self._shapes, self._format, wide, reached)

    def rows(self, most: int, tokens: int) -> int:
        """What ``exchange`` asks for, tokens. most: of one data-parallel rank; tokens: of all."""
        if self._gathers:
            return tokens
        received = self._busiest * tokens / self._placed.expert_ranks
        return ceil(max(most / self._placed.tp, received))

    def exchange(self, rows: int) -> Sequence[tuple[str, Price]]:
        """Dispatch and combine."""
        if not self._exchanges:
            return ()
        ops, wide = self._ops, self._placed.dtype_bytes
        row = self._hidden * wide
        if self._gathers:
            each = ops.all_gather(rows * row, self._placed.expert_ranks)
            return ("dispatch (all_gather)", each), ("combine (reduce_scatter)", each)
        narrow = weight_format(self._placed.dtype).math != self._format.math and self._format.math == "fp8"
        sent = self._hidden * (1.0 + SCALE_BYTES if narrow else wide)
        return (
            ("dispatch", ops.send(rows * self._copies * sent, self._link)),
            ("combine", ops.send(rows * self._copies * row, self._link)),
        )
