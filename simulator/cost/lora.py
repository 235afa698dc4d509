"""What LoRA adapters take: memory, time to copy, and the products beside each matrix.

For every matrix that is adapted, tokens are multiplied with their own adapter's A (down to rank r) and B (up again), in
two kernels that gather the weights of all adapters in the batch (Punica's SGMV, arXiv:2310.18547; vLLM's shrink and
expand kernels). A kernel reads each different adapter once and each token's activations, and starts like any other
small kernel: with a few tokens the launches of all layers are most of it.

On several ranks A or B is cut as the matrix is, the other one repeated (vLLM without ``fully_sharded_loras``). Experts
are not adapted.
"""

from __future__ import annotations

from simulator.cost.step import OperatorCost

ELEMENT = 2  # bytes, of adapters
COMPUTE_SHARE = 0.2  # of the tensor cores' peak: products as thin as a rank (an assumption)


class LoraPrice:
    """Seconds that adapters add to a step, by its tokens and the sum of the ranks of the different adapters."""

    def __init__(self, cost: OperatorCost, target_modules: tuple[str, ...]) -> None:
        """target_modules: matrices adapted, under vLLM's names; empty: all of attention and MLP."""
        self._operators = cost.operators
        self._wide = cost.placed.dtype_bytes
        self._shapes = [
            (count, linear.in_features, linear.out_features)
            for layer, count in cost.layers.items()
            for linear in cost.placed.linears(cost.model, layer)
            if linear.role in {"attention", "mlp"} and (not target_modules or linear.name in target_modules)
        ]
        self._known: dict[tuple[int, int], float] = {}

    @property
    def bytes_per_rank(self) -> int:
        """Of an adapter of rank 1 on each GPU."""
        return ELEMENT * sum(count * (rows + columns) for count, rows, columns in self._shapes)

    @property
    def merge_s(self) -> float:
        """Seconds to add an adapter to the weights, or to take it out: they are read and written once."""
        size = 2.0 * self._wide
        return sum(
            count * self._operators.elementwise(size * rows * columns, 1).seconds
            for count, rows, columns in self._shapes
        )

    def __call__(self, tokens: int, ranks: int) -> float:
        found = self._known.get((tokens, ranks))
        if found is None:
            found = self._known[tokens, ranks] = self._seconds(tokens, ranks)
        return found

    def _seconds(self, tokens: int, ranks: int) -> float:
        gpu = self._operators.gpu
        flops_per_s = gpu.peak("bf16")[1] * COMPUTE_SHARE
        rank = min(ranks, 64)  # of a token's own adapter, at most: its products are small beside reading it
        seconds = 0.0
        for count, rows, columns in self._shapes:
            size = ELEMENT * ranks * (rows + columns) + self._wide * tokens * (rows + 2 * columns + 2 * rank)
            compute = 2.0 * tokens * rank * (rows + columns) / flops_per_s
            seconds += count * max(self._operators.elementwise(size, 2).seconds, compute)
        return seconds
