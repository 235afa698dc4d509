"""What speculative decoding takes: drafts, and steps that verify them.

*Verify.* A step computes the last token and the draft of every request: ``q`` tokens each through all matrices and the
output layer, padded to a captured CUDA graph. Attention reads a request's keys once for all its queries; its FLOPs are
``q`` times as many and may then bind.

*Draft.* A draft model runs on the same GPUs: its first pass over what the last step verified (vLLM pads it to all of
that), the others over one token each, or over the next level of the tree. EAGLE's and MTP's heads are a layer of the
target's kind behind a matrix that joins embedding and hidden state, with the target's output layer (EAGLE,
arXiv:2401.15077; DeepSeek-V3, arXiv:2412.19437, section 2.2); Medusa's are a residual block and an output layer each,
all in one pass (arXiv:2401.10774, section 2.1). N-grams are looked up on the CPU; lookahead decoding's guesses come out
of the verifying step itself (arXiv:2402.02057).

Requests' lengths are taken as equal (no tail of FlashAttention-2, see ``flash_attention.py``), and choosing among
drafts costs the sampling of their rows alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

from simulator.cost.interface import Line, StepCost
from simulator.cost.operators import Curve
from simulator.cost.overhead import EngineOverhead
from simulator.cost.placement import Deployment
from simulator.cost.roofline import EFFICIENCY
from simulator.cost.shapes import AttentionShape
from simulator.cost.step import OperatorCost, Table, by_operators
from simulator.model.architecture import Model
from simulator.model.formats import weight_format
from simulator.model.weights import layer_weight_bytes, vocab_rows


class Verifying(OperatorCost):
    """``OperatorCost`` where every decoding request computes ``queries`` tokens. Prices hold for one step."""

    def __init__(self, plain: OperatorCost, queries: int) -> None:
        self.queries = queries
        super().__init__(plain.model, plain.operators, plain.deployment, plain.overhead)
        self.uneven = False
        self._by_tokens, self._by_sampled = plain._by_tokens, plain._by_sampled  # noqa: SLF001 - made once for both

    def decode(  # noqa: PLR0917 - see UnevenStepCost
        self, num_decodes: int, context: int, windowed: int, growing: int, longest: int = 0, squares: int = 0
    ) -> Line:
        """As in ``StepCost``, context and windowed counting one token of each request: the drafts are added here."""
        del growing, longest, squares
        tokens, overhead = num_decodes * self.queries, self.overhead
        gpu = self._attention(num_decodes, context, windowed)
        gpu += self._by_tokens[overhead.padded(tokens)] + self._by_sampled[tokens]
        graphs = overhead.full_graphs and tokens <= self._graph_top
        floor = overhead.floor_s(num_decodes, 1 if graphs else self._launches(tokens))
        return Line(overhead.serial_s(num_decodes) + max(gpu, floor), 0.0, 1)

    def mixed(  # noqa: PLR0917
        self, num_decodes: int, context: int, windowed: int, chunks: Sequence[tuple[int, int]], num_sampled: int,
        longest: int = 0, squares: int = 0,
    ) -> float:  # fmt: skip
        del longest, squares
        if not chunks:
            return self.decode(num_decodes, context, windowed, 0).first
        tokens = num_decodes * self.queries + sum(new for new, _ in chunks)
        sampled = num_sampled + num_decodes * (self.queries - 1)
        gpu = self._chunk_times * sum(self._chunk(new, computed) for new, computed in chunks)
        gpu += self._mixed_gpu[tokens] + self._by_sampled[sampled]
        if num_decodes:
            gpu += self._attention(num_decodes, context, windowed)
        serial, floor = self._cpu[num_decodes + len(chunks)]
        floor += self._launch_eager if tokens > self._graph_top else self._launch_pieces
        return serial + max(gpu, floor)

    def _attention(self, num_decodes: int, context: int, windowed: int) -> float:
        drafts = num_decodes * (self.queries - 1)
        full, clipped = self._mixed_decode[num_decodes]
        seconds = full.at(context + drafts)
        if windowed and self.sliding_window is not None:
            seconds += clipped.at(min(windowed + drafts, num_decodes * self.sliding_window))
        return seconds

    def _attention_curves(self, num_decodes: int) -> tuple[Curve, Curve]:
        full, clipped = super()._attention_curves(num_decodes)
        of = [(shape, count) for shape, count in self.attention_shapes if shape.window is None]
        windowed = [(shape, count) for shape, count in self.attention_shapes if shape.window is not None]
        return self._with_queries(full, of, num_decodes), self._with_queries(clipped, windowed, num_decodes)

    def _with_queries(self, curve: Curve, shapes: Sequence[tuple[AttentionShape, int]], num_decodes: int) -> Curve:
        """The curve of one query, or what all of them compute where that takes longer."""
        flops_per_s = self.gpu.peak("bf16")[1] * EFFICIENCY["decode"].compute
        slope = self.queries * sum(count * shape.flops_per_context for shape, count in shapes) / flops_per_s
        more = num_decodes * (self.queries - 1)
        base = more * sum(count * shape.flops_per_sequence for shape, count in shapes) / flops_per_s
        return Curve(tuple(b + base for b in curve.base), tuple(max(s, slope) for s in curve.slope), curve.knots)


class Counted:
    """A cost in which ``queries`` tokens of a request count as so many decodes. Prices hold for one step."""

    def __init__(self, plain: StepCost, queries: int) -> None:
        self._plain, self._queries = plain, queries
        self.sliding_window = plain.sliding_window

    def decode(self, num_decodes: int, context: int, windowed: int, growing: int) -> Line:
        tokens = num_decodes * self._queries
        line = self._plain.decode(tokens, context + tokens - num_decodes, windowed, growing)
        return Line(line.first, 0.0, 1)

    def mixed(
        self, num_decodes: int, context: int, windowed: int, chunks: Sequence[tuple[int, int]], num_sampled: int
    ) -> float:
        tokens = num_decodes * self._queries
        drafts = tokens - num_decodes
        return self._plain.mixed(tokens, context + drafts, windowed, chunks, num_sampled + drafts)


def verifying(plain: StepCost, queries: int) -> StepCost:
    """The same engine when every decoding request computes so many tokens. Engines whose steps are not their GPU's
    operators alone (weights that are copied, say) count them as so many decodes over the same keys."""
    if queries == 1:
        return plain
    return Verifying(plain, queries) if by_operators(plain) else Counted(plain, queries)


class Drafter(Protocol):
    """Makes drafts, on the GPUs of the model that verifies them."""

    weight_bytes: int
    """On each GPU."""
    kv_bytes_per_token: float
    """On each GPU."""

    def draft(self, num_decodes: int, context: int, windowed: int, queries: int, drafts: int) -> float:
        """Seconds of ``drafts`` tokens for each of so many requests, after a step that verified ``queries`` of each."""
        ...

    def prompts(self, chunks: Sequence[tuple[int, int]]) -> float:
        """Seconds of these chunks of prompts."""
        ...


class Lookup:
    """Drafts that no model makes. seconds: per step, on the CPU."""

    weight_bytes = 0
    kv_bytes_per_token = 0.0

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def draft(self, num_decodes: int, context: int, windowed: int, queries: int, drafts: int) -> float:
        del context, windowed, queries, drafts
        return self._seconds if num_decodes else 0.0

    def prompts(self, chunks: Sequence[tuple[int, int]]) -> float:
        del chunks
        return 0.0


class DraftModel:
    """A model that makes one token of a draft after the other, or all at once.

    per_level: tokens of each level of a tree. parallel: all levels in one pass (vLLM's ``parallel_drafting``).
    extra_s: seconds of each pass over so many tokens beside the model.
    """

    def __init__(
        self, cost: StepCost, *, weight_bytes: int = 0, kv_bytes_per_token: float = 0.0, per_level: int = 1,
        parallel: bool = False, extra_s: Callable[[int], float] = lambda tokens: 0.0 * tokens,
    ) -> None:  # fmt: skip
        self._cost = cost
        self.weight_bytes = weight_bytes
        self.kv_bytes_per_token = kv_bytes_per_token
        self._per_level, self._parallel, self._extra_s = per_level, parallel, extra_s
        self._passes: Table[StepCost] = Table(lambda queries: verifying(cost, queries))

    def draft(self, num_decodes: int, context: int, windowed: int, queries: int, drafts: int) -> float:
        if not (num_decodes and drafts):
            return 0.0
        if self._parallel:
            return self._pass(num_decodes, context, windowed, queries + drafts)
        seconds = self._pass(num_decodes, context, windowed, queries)
        if drafts > 1:  # the contexts of later passes grow by a token each: that of the middle one stands for all
            middle = context + num_decodes * drafts // 2
            seconds += (drafts - 1) * self._pass(num_decodes, middle, windowed, self._per_level)
        return seconds

    def _pass(self, num_decodes: int, context: int, windowed: int, queries: int) -> float:
        clipped = windowed if self._cost.sliding_window is not None else 0
        seconds = self._passes[queries].decode(num_decodes, context, clipped, 0).first
        return seconds + self._extra_s(num_decodes * queries)

    def prompts(self, chunks: Sequence[tuple[int, int]]) -> float:
        return self._cost.mixed(0, 0, 0, chunks, 0) + self._extra_s(sum(new for new, _ in chunks))


class MedusaHeads:
    """``num_heads`` heads on the target's last hidden state."""

    kv_bytes_per_token = 0.0

    def __init__(self, target: OperatorCost, num_heads: int) -> None:
        self._target, self._heads = target, num_heads
        model, placed = target.model, target.placed
        rows = vocab_rows(model.vocab_size, placed.tp)
        self.weight_bytes = round(num_heads * model.hidden_size * (model.hidden_size + rows) * placed.dtype_bytes)

    def draft(self, num_decodes: int, context: int, windowed: int, queries: int, drafts: int) -> float:
        del context, windowed, queries
        if not (num_decodes and drafts):
            return 0.0
        target = self._target
        hidden, wide = target.model.hidden_size, target.placed.dtype_bytes
        block = target.operators.gemm(num_decodes, hidden, hidden, weight_format(target.placed.dtype), wide)
        head = sum(entry.times * entry.price.seconds for entry in target.sampled_entries(num_decodes))
        return self._heads * (block.seconds + head)

    def prompts(self, chunks: Sequence[tuple[int, int]]) -> float:
        del chunks
        return 0.0


class SpeculativeCost:
    """``StepCost`` of an engine that drafts.

    drafts: tokens drafted per request, by the requests that decode. verified: tokens verified beside the last one, by
    the tokens drafted.
    """

    def __init__(
        self, plain: StepCost, drafter: Drafter, drafts: Callable[[int], int], verified: Callable[[int], int]
    ) -> None:
        self.sliding_window = plain.sliding_window
        self._drafter, self._drafts, self._verified = drafter, drafts, verified
        self._verifying: Table[StepCost] = Table(lambda queries: verifying(plain, queries))

    def decode(self, num_decodes: int, context: int, windowed: int, growing: int) -> Line:
        del growing
        drafts = self._drafts(num_decodes)
        queries = 1 + self._verified(drafts)
        first = self._verifying[queries].decode(num_decodes, context, windowed, 0).first
        return Line(first + self._drafter.draft(num_decodes, context, windowed, queries, drafts), 0.0, 1)

    def mixed(
        self, num_decodes: int, context: int, windowed: int, chunks: Sequence[tuple[int, int]], num_sampled: int
    ) -> float:
        drafts = self._drafts(num_decodes)
        queries = 1 + self._verified(drafts)
        seconds = self._verifying[queries].mixed(num_decodes, context, windowed, chunks, num_sampled)
        seconds += self._drafter.prompts(chunks) if chunks else 0.0
        begun = num_sampled - num_decodes  # prompts that are done, as long as the others on average: they draft too
        if begun:
            context += begun * sum(new + computed for new, computed in chunks) // len(chunks)
            windowed = min(context, num_sampled * self.sliding_window) if self.sliding_window is not None else 0
        return seconds + self._drafter.draft(num_sampled, context, windowed, queries, drafts)


def within_step(overhead: EngineOverhead) -> EngineOverhead:
    """Of a model that runs inside another one's step: launching alone."""
    return replace(overhead, gpu_gap_s=0.0, cpu_step_s=0.0, cpu_per_sequence_s=0.0)


def head_model(target: Model, *, quantized: bool) -> Model:
    """EAGLE's or MTP's head: one more layer like the target's last one. quantized: as the target's weights."""
    quantization = target.quantization if quantized else None
    return replace(target, name=f"{target.name} head", layers=target.layers[-1:], quantization=quantization)


def head(target: OperatorCost, *, quantized: bool, per_level: int, parallel: bool) -> DraftModel:
    """The head on the GPUs of its target; it shares embedding and output layer."""
    own = target.deployment
    deployment = Deployment(
        own.tensor_parallel_size,
        enable_expert_parallel=own.enable_expert_parallel,
        dtype=own.dtype,
        quantization=own.quantization if quantized else None,
        kv_cache_dtype=own.kv_cache_dtype,
    )
    model = head_model(target.model, quantized=quantized)
    cost = OperatorCost(model, target.operators, deployment, within_step(target.overhead))
    placed, hidden = cost.placed, model.hidden_size
    wide = weight_format(placed.dtype)

    def join(tokens: int) -> float:
        return target.operators.gemm(max(tokens, 1), hidden, 2 * hidden, wide, placed.dtype_bytes).seconds

    layer = layer_weight_bytes(
        model, model.layers[0], placed.tp, placed.dtype, placed.quantization, placed.expert_parallel
    )
    weights = round(layer + 2 * hidden * hidden * placed.dtype_bytes)
    return DraftModel(
        cost, weight_bytes=weights, kv_bytes_per_token=kv_per_token(cost), per_level=per_level, parallel=parallel,
        extra_s=join,
    )  # fmt: skip


def kv_per_token(cost: OperatorCost) -> float:
    """Bytes a GPU caches of a token, all layers."""
    return sum(count * shape.bytes_per_context for shape, count in cost.attention_shapes)
