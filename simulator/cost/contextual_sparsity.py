"""Steps that multiply only the neurons and heads which their tokens need (Deja Vu).

A token needs few of an MLP's neurons and of the heads, others than the next token. Predictors (two small matrices
each) name them before the layer runs; of its matrices those rows and columns alone are read. A batch needs the *union*
of what its tokens need, ``1 - (1 - share)^n`` of ``n`` independent tokens: the gain is one of small batches. Prompts
are dense, as any step is in which predicting and gathering takes longer than all the weights; that is found layer by
layer.

Attention reads the KV of all heads (a head that was skipped lacks keys and values, which the paper computes again).
What is left out of an answer is an input: quality is not simulated.

Reference: Liu et al., Deja Vu, ICML 2023 (arXiv:2310.17157), sections 3 and 4.
"""

from __future__ import annotations

from math import ceil

from simulator.cost.sparsity import ContextualSparsity
from simulator.cost.step import Entry, OperatorCost
from simulator.model.architecture import Attention, Layer
from simulator.model.formats import weight_format
from simulator.model.weights import format_of


class SparseCost(OperatorCost):
    """``OperatorCost`` of a deployment with contextual sparsity."""

    @property
    def sparsity(self) -> ContextualSparsity:
        assert self.deployment.sparsity is not None
        return self.deployment.sparsity

    def _layer_entries(self, layer: Layer, tokens: int) -> list[Entry]:
        dense = super()._layer_entries(layer, tokens)
        sparse = [*self._gathered(dense, layer, tokens), *self._predictors(layer, tokens)]
        return min(dense, sparse, key=lambda entries: sum(e.times * e.price.seconds for e in entries))

    def _gathered(self, dense: list[Entry], layer: Layer, tokens: int) -> list[Entry]:
        """The entries with matrices of what so many tokens need."""
        p, sparsity = self.placed, self.sparsity
        shares = {role: sparsity.touched(share, tokens) for role, share in self._needed()}
        smaller: dict[str, Entry] = {}
        for linear in self._linears[layer]:
            share = shares.get(linear.role, 1.0)
            into = linear.name.endswith(("down_proj", "o_proj"))  # the others' outputs are neurons or heads
            n = linear.out_features if into else ceil(share * linear.out_features)
            k = ceil(share * linear.in_features) if into else linear.in_features
            fmt = format_of(linear, p.dtype, p.quantization)
            smaller[linear.name] = Entry(linear.name, 1, self.operators.gemm(tokens, n, k, fmt, p.dtype_bytes))
        return [smaller.get(entry.operator, entry) for entry in dense]

    def _needed(self) -> list[tuple[str, float]]:
        """(role of matrices, share that a token needs) of what is sparse."""
        shares = ("mlp", self.sparsity.neurons), ("attention", self.sparsity.heads)
        return [(role, share) for role, share in shares if share < 1.0]

    def _predictors(self, layer: Layer, tokens: int) -> list[Entry]:
        """Each predictor's two products, and the choice among its scores."""
        ops, p = self.operators, self.placed
        wide, hidden, rank = weight_format(p.dtype), self.model.hidden_size, self.sparsity.predictor_rank
        entries: list[Entry] = []
        for choices in self._choices(layer):
            entries += [
                Entry("predictor", 1, ops.gemm(tokens, rank, hidden, wide, p.dtype_bytes)),
                Entry("predictor", 1, ops.gemm(tokens, choices, rank, wide, p.dtype_bytes)),
                Entry("predictor", 1, ops.elementwise(2.0 * tokens * choices * p.dtype_bytes, 1)),
            ]
        return entries

    def _choices(self, layer: Layer) -> list[int]:
        """Neurons and heads of one rank that predictors choose from."""
        attention, mlp = layer.attention, layer.mlp
        assert isinstance(attention, Attention) and mlp is not None
        sizes = {"mlp": mlp.intermediate_size, "attention": attention.num_heads}
        return [-(-sizes[role] // self.placed.tp) for role, _ in self._needed()]

    @property
    def predictor_bytes(self) -> int:
        """Of all layers, on each rank."""
        rank, hidden = self.sparsity.predictor_rank, self.model.hidden_size
        size = sum(rank * (hidden + n) * count for layer, count in self.layers.items() for n in self._choices(layer))
        return round(size * self.placed.dtype_bytes)
