"""Attention that reads a prefix which requests share once for all of them.

A decode step is bound by reading every request's KV. Where ``n`` requests hold the same ``L`` tokens, one kernel
computes all their queries over that prefix, reading it once, and the usual one every request's own tokens; a third
merges both by their softmax sums. The first is what a chunk of ``n`` queries over ``L`` computed tokens runs, and is
priced as that: by bytes read once where few requests share, by FLOPs, which sharing does not save, where many do.

The engine takes the plain kernel where that is faster: two kernels more per layer are lost on short prefixes, and
nothing is gained where little is shared.

Reference: Juravsky et al., Hydragen (arXiv:2402.05099), section 3; Parrot (OSDI 2024, arXiv:2405.19888), section 5.3;
Ye et al., FlashInfer's cascade inference (2024).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from simulator.core.errors import ModelError
from simulator.cost.interface import Line
from simulator.cost.step import OperatorCost


class SharedPrefixCost(OperatorCost):
    """``OperatorCost`` of an engine whose decode attention reads shared prefixes once. Prices of batches that share
    hold for one step.

    shared: (requests, tokens) of each prefix that several requests of the decoding batch hold, as it is now.
    """

    def __init__(self, plain: OperatorCost, shared: Callable[[], Sequence[tuple[int, int]]]) -> None:
        """Raises ModelError for models whose attention has no such kernel."""
        check_sharing(plain)
        super().__init__(plain.model, plain.operators, plain.deployment, plain.overhead)
        self._shared = shared
        self._by_tokens, self._by_sampled = plain._by_tokens, plain._by_sampled  # noqa: SLF001 - made once for all
        self._by_decodes, self._mixed_decode = plain._by_decodes, plain._mixed_decode  # noqa: SLF001
        self._mixed_gpu, self._beside = plain._mixed_gpu, plain._beside  # noqa: SLF001

    def saved_s(self, num_decodes: int, context: int) -> float:
        """GPU seconds of a step that are not spent, all layers; never below 0."""
        groups = self._shared()
        if not groups:
            return 0.0
        full, _ = self._mixed_decode[num_decodes]
        own = context - sum(count * tokens for count, tokens in groups)
        return max(full.at(context) - full.at(own) - sum(self._prefix_s(*group) for group in groups), 0.0)

    def _prefix_s(self, count: int, tokens: int) -> float:
        """All layers' attention of ``count`` queries over a prefix, and the merge with their own tokens."""
        merge = sum(
            layers * self.operators.elementwise(1.5 * count * shape.bytes_per_sequence, 1).seconds
            for shape, layers in self.attention_shapes
        )
        return self.attention_of_chunk(count, tokens) + merge

    def decode(  # noqa: PLR0917 - see UnevenStepCost
        self, num_decodes: int, context: int, windowed: int, growing: int, longest: int = 0, squares: int = 0
    ) -> Line:
        line = super().decode(num_decodes, context, windowed, growing, longest, squares)
        if not self._shared():
            return line
        entry = self._by_decodes[num_decodes]
        gpu = line.first - entry.serial - self.saved_s(num_decodes, context)
        return Line(entry.serial + max(gpu, entry.floor), 0.0, 1)

    def mixed(  # noqa: PLR0917
        self, num_decodes: int, context: int, windowed: int, chunks: Sequence[tuple[int, int]], num_sampled: int,
        longest: int = 0, squares: int = 0,
    ) -> float:  # fmt: skip
        if not chunks:
            return self.decode(num_decodes, context, windowed, 0, longest, squares).first
        seconds = super().mixed(num_decodes, context, windowed, chunks, num_sampled, longest, squares)
        saved = self.saved_s(num_decodes, context) if num_decodes else 0.0
        if not saved:
            return seconds
        serial, floor = self._cpu[num_decodes + len(chunks)]
        tokens = num_decodes + sum(new for new, _ in chunks)
        floor += self._launch_eager if tokens > self._graph_top else self._launch_pieces
        return serial + max(seconds - serial - saved, floor)


def check_sharing(plain: OperatorCost) -> None:
    """Raises ModelError for models whose attention has no such kernel."""
    if any(shape.kind != "softmax" or shape.window is not None or shape.kv for shape, _ in plain.attention_shapes):
        raise ModelError(
            f"{plain.model.name} has attention with a window, a latent or recurrent state, or a compressed cache, for "
            "which no kernel that reads shared prefixes once is modelled",
            remedy="Set shared_prefix_attention: none.",
        )
