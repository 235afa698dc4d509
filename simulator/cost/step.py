"""A step's time as the sum of its operators: ``StepCost`` for any model on any GPU, whoever prices the operators."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import Generic, NamedTuple, Self, TypeGuard, TypeVar

from simulator.cost.expert_layer import ExpertLayer
from simulator.cost.experts import balance
from simulator.cost.flash_attention import Beside, blocks_of
from simulator.cost.interface import Line
from simulator.cost.kv_reads import decode_curve
from simulator.cost.operators import ChunkSeconds, Curve, Operators, Price, sum_curves
from simulator.cost.overhead import EngineOverhead
from simulator.cost.placement import Deployment, place, stage_ranges
from simulator.cost.served_experts import ServedExperts
from simulator.cost.shapes import AttentionShape, attention_shape
from simulator.cost.tensor_cuts import best_cut, blocks_of_layer
from simulator.model.architecture import Attention, Layer, Model
from simulator.model.formats import weight_format
from simulator.model.weights import format_of, vocab_rows
from simulator.native.attributes import mypyc_attr

PIECE_LAUNCHES = 2  # per layer outside a full graph: the piece between two attentions, and attention
FOREVER = 1 << 40  # steps: the price never bends
EXACT_TOKENS = 512  # up to here every token count has its own price; beyond, prices are interpolated
GRID_TOKENS = 128  # between multiples of this, where matrix times are straight lines but for their tiles

V = TypeVar("V")
_line = tuple.__new__  # a Line without the call to its Python constructor, for the hot path


class Table(dict[int, V], Generic[V]):
    """Filled on first use: ``table[n]`` is ``make(n)``."""

    def __init__(self, make: Callable[[int], V]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, n: int) -> V:
        value = self[n] = self._make(n)
        return value


class Entry(NamedTuple):
    """``times`` equal operators of a step."""

    operator: str
    times: int
    price: Price


class Decode(NamedTuple):
    """Everything about a pure-decode step that its number of requests fixes."""

    base: float  # GPU seconds at context 0
    slope: float  # per context token of layers that see everything
    windowed_slope: float  # per context token of sliding-window layers
    floor: float  # CPU seconds: the GPU part lasts at least so long
    serial: float  # added on top
    full: Curve | None  # set when the price bends in the context; base and slope are then unused
    windowed: Curve | None
    tail: float  # per token that the longest context is ahead, see ``flash_attention``


@mypyc_attr(allow_interpreted_subclasses=True, serializable=True)  # with_overhead copies
class OperatorCost:
    """Prices the steps of one model replica. Implements ``StepCost``, and ``UnevenStepCost`` where lengths matter.

    With ``pipeline_parallel_size > 1`` the price is that of ONE micro-batch on the slowest stage, its activations'
    transfer to the next stage included: a pipeline accepts a new micro-batch every such time, and a micro-batch takes
    ``pipeline_parallel_size`` of them. With expert parallelism, experts are spread over the tensor-parallel ranks; the
    price is that of the busiest (``expert_skew``). With ``data_parallel_size`` it is that of a wave in which every rank
    has this batch; ``cost/wave.py`` prices waves of ranks that differ.

    Everything that depends on one integer is tabulated once; between decisions the price is a straight line.
    """

    def __init__(
        self, model: Model, operators: Operators, deployment: Deployment, overhead: EngineOverhead | None = None
    ) -> None:
        self.model, self.operators, self.deployment = model, operators, deployment
        self.gpu = operators.gpu
        self.overhead = overhead or EngineOverhead()
        self.placed = place(model, self.gpu, deployment)
        self.sliding_window: int | None = model.sliding_window
        self._wide = weight_format(self.placed.dtype)
        stages = self._stages()
        self._use(max(stages, key=self._reference_time) if len(stages) > 1 else stages[0])

    def with_overhead(self, overhead: EngineOverhead) -> Self:
        """The same kernels under another engine; prices of tokens are shared, not made again."""
        other = copy(self)
        other.overhead = overhead
        other._overhead_tables()  # noqa: SLF001 - its own class
        return other

    def with_layers(self, first: int, end: int) -> Self:
        """The same GPU with layers ``first`` to ``end - 1`` alone."""
        other = copy(self)
        other.placed = replace(self.placed, layers=(first, end))
        other._use(other._stages()[0])  # noqa: SLF001 - its own class
        return other

    # -- set-up -------------------------------------------------------------------------------------------------

    def _stages(self) -> list[tuple[tuple[Layer, ...], bool, bool]]:
        """(layers, holds the embedding, holds the lm_head) per pipeline stage."""
        last = self.model.num_layers
        return [
            (self.model.layers[held.start : held.stop], held.start == 0, held.stop == last)
            for held in stage_ranges(last, self.placed)
        ]

    def _reference_time(self, stage: tuple[tuple[Layer, ...], bool, bool]) -> float:
        """Which stage is slowest depends little on the batch; 32 decodes over 1,000 tokens each decide it."""
        self._use(stage)
        return self.decode(32, 32_000, 32 * min(1000, self.sliding_window or 1000), 0).first

    def _use(self, stage: tuple[tuple[Layer, ...], bool, bool]) -> None:
        layers, self._first, self._last = stage
        p = self.placed
        self.layers = Counter(layers)
        self._linears = {x: p.linears(self.model, x) for x in self.layers}
        self._experts = self.expert_layers(eplb=p.eplb)
        kinds: Counter[AttentionShape] = Counter()
        for layer, count in self.layers.items():
            kinds[attention_shape(layer.attention, p.tp, p.kv_dtype, p.dtype_bytes)] += count
        self.attention_shapes = tuple(kinds.items())
        chunk_prices = [(n, self.operators.prefill_attention(s)) for s, n in self.attention_shapes]
        self._chunk_times, self._chunk = _weighted(chunk_prices)
        self.blocks = [None if s.kv else blocks_of(self.gpu, s) for s, _ in self.attention_shapes]
        self._attention_layers = sum(n for _, n in self.attention_shapes)
        self.uneven = any(b is not None for b in self.blocks)
        self._lag = next((0.5 / b.slots for b in self.blocks if b is not None), 0.0)
        self._prefill_launch = sum(n * self.operators.prefill_launch(s) for s, n in self.attention_shapes)
        self._kernels = sum(n * self._kernels_of(x) for x, n in self.layers.items()) + 4
        self._by_tokens: Table[float] = Table(self._tokens_seconds)
        self._by_sampled: Table[float] = Table(lambda n: _seconds(self.sampled_entries(n)))
        self._mixed_decode: Table[tuple[Curve, Curve]] = Table(self._attention_curves)
        self._beside: Table[list[tuple[int, bool, Curve, Beside | None]]] = Table(self._beside_entry)
        self._overhead_tables()

    def _overhead_tables(self) -> None:
        self._by_decodes: Table[Decode] = Table(self._decode_entry)
        self._graph_top = (self.overhead.graph_sizes or (0,))[-1]
        self._launch_eager = self._launches(self._graph_top + 1) * self.overhead.launch_s
        self._launch_pieces = self._launches(0) * self.overhead.launch_s
        self._mixed_gpu: Table[float] = Table(self._mixed_tokens)
        self._cpu: Table[tuple[float, float]] = Table(self._mixed_cpu)

    # -- operators of a step ------------------------------------------------------------------------------------

    def token_entries(self, tokens: int) -> list[Entry]:
        """Operators that depend on the tokens of the step alone (attention, logits and overhead apart)."""
        entries: list[Entry] = []
        for layer, count in self.layers.items():
            entries += [e._replace(times=e.times * count) for e in self._layer_entries(layer, tokens)]
        row = self.model.hidden_size * self.placed.dtype_bytes
        if self._first:
            entries.append(Entry("embedding", 1, self.operators.elementwise(2.0 * tokens * row, 1)))
            if self.placed.tp > 1:
                entries.append(Entry("all_reduce", 1, self.operators.all_reduce(tokens * row, self.placed.tp)))
        if self.placed.pp > 1:  # hidden states and residual go on to the next stage
            link = self.gpu.group_link(self.placed.tp * self.placed.pp)
            entries.append(Entry("pipeline_send", 1, self.operators.send(2.0 * tokens * row, link)))
        return entries

    def _layer_entries(self, layer: Layer, tokens: int) -> list[Entry]:
        p, ops = self.placed, self.operators
        if p.layout != "1d":
            return self._cut_entries(layer, tokens)
        wide, row = p.dtype_bytes, self.model.hidden_size * p.dtype_bytes
        entries = [Entry("norm", 1, ops.elementwise(4.0 * layer.num_norms * tokens * row, layer.num_norms))]
        for linear in self._linears[layer]:
            if linear.role != "expert" and not linear.absorbed:
                fmt = format_of(linear, p.dtype, p.quantization)
                price = ops.gemm(tokens, linear.out_features, linear.in_features, fmt, wide)
                entries.append(Entry(linear.name, 1, price))
        if layer.moe:
            entries += self._expert_entries(layer, tokens)
        entries += self._elementwise_entries(layer, tokens)
        if p.tp > 1:
            scattered = p.dp > 1 and layer.moe is not None  # what the experts sum is gathered, not summed again
            sums = 1 + (1 if (layer.mlp or layer.moe) and not scattered else 0)
            entries.append(Entry("all_reduce", sums, ops.all_reduce(tokens * row, p.tp)))
            if scattered:
                entries.append(Entry("all_gather", 1, ops.all_gather(tokens * row, p.tp)))
        return entries

    def _cut_entries(self, layer: Layer, tokens: int) -> list[Entry]:
        """As above in the layout that sends least (see ``tensor_cuts``); hidden states are spread over all ranks."""
        p, ops, wide = self.placed, self.operators, self.placed.dtype_bytes
        link = self.gpu.group_link(p.tp)
        message = link.latency_s * link.bandwidth
        row = self.model.hidden_size * wide / p.tp
        entries = [Entry("norm", 1, ops.elementwise(4.0 * layer.num_norms * tokens * row, layer.num_norms))]
        for role, block in blocks_of_layer(self.model, p, layer).items():
            found = best_cut(block, tokens, wide, p.tp, p.layout, message)
            inner = p.tp // found.groups  # ranks that share the inner columns, however they share the width
            shapes = (-(-block.inner_out // inner), block.width), (block.width, -(-block.inner_in // inner))
            linears = [x for x in self._linears[layer] if x.role == role and not x.absorbed]
            for linear, (n, k) in zip(linears, shapes, strict=True):
                fmt = format_of(linear, p.dtype, p.quantization)
                entries.append(Entry(linear.name, 1, ops.gemm(-(-tokens // found.groups), n, k, fmt, wide)))
            sent = ops.send(found.sent_bytes, link)
            more = max(found.collectives - 1, 0) * link.latency_s
            entries.append(Entry("collectives", 1, sent._replace(seconds=sent.seconds + more)))
        return entries + self._elementwise_entries(layer, tokens)

    def _expert_entries(self, layer: Layer, tokens: int) -> list[Entry]:
        """With data parallelism as if every rank had as many tokens."""
        experts, everybody = self._experts[layer], tokens * self.placed.dp
        exchange = experts.exchange(experts.rows(tokens, everybody))
        return [Entry("experts", 1, experts.experts(everybody)), *(Entry(name, 1, price) for name, price in exchange)]

    def expert_layers(self, *, eplb: bool) -> dict[Layer, ExpertLayer]:
        """eplb: with experts placed by load, else one slice of them after the other."""
        p, found = self.placed, {}
        for layer in self.layers:
            if layer.moe is None:
                continue
            here = tuple(i for i, other in enumerate(self.model.layers) if other == layer)
            spread = p.expert_parallel and (p.skew > 0 or p.eplb)
            kind = ExpertLayer if p.experts is None else ServedExperts
            found[layer] = kind(
                self.operators,
                self.model,
                p,
                layer,
                balance(
                    layer.moe.num_experts, layer.moe.top_k, p.skew, p.expert_ranks, p.redundant, here, eplb=eplb
                ).busiest
                if spread
                else 1.0,
            )
        return found

    def _elementwise_entries(self, layer: Layer, tokens: int) -> list[Entry]:
        """Rotary embedding with the write to the cache, and the MLP's activation."""
        p, a = self.placed, layer.attention
        shape = attention_shape(a, p.tp, p.kv_dtype, p.dtype_bytes)
        rotated = (shape.heads + 2 * shape.kv_heads) * shape.head_dim * p.dtype_bytes
        size = tokens * (2.0 * rotated + shape.bytes_per_context)
        entries = [Entry("rope_and_cache", 1, self.operators.elementwise(size, 2))]
        for linear in self._linears[layer]:
            if linear.role in ("mlp", "shared_expert") and not linear.name.endswith("down_proj"):
                moved = tokens * linear.out_features * 1.5 * p.dtype_bytes
                entries.append(Entry("activation", 1, self.operators.elementwise(moved, 1)))
        return entries

    def sampled_entries(self, num_sampled: int) -> list[Entry]:
        """Final norm, lm_head and sampling of the rows that need logits, on the stage that holds them."""
        if not (self._last and num_sampled):
            return []
        p, ops, model = self.placed, self.operators, self.model
        rows, wide = vocab_rows(model.vocab_size, p.tp), p.dtype_bytes
        entries = [
            Entry("norm", 1, ops.elementwise(2.0 * num_sampled * model.hidden_size * wide, 1)),
            Entry("lm_head", 1, ops.gemm(num_sampled, rows, model.hidden_size, self._wide, wide)),
        ]
        if p.tp > 1:
            entries.append(Entry("all_gather", 1, ops.all_gather(num_sampled * rows * p.tp * wide, p.tp)))
        # Logits are read once to convert to fp32, written, and read by softmax and by the draw.
        sampling = num_sampled * model.vocab_size * (wide + 3 * 4.0)
        return [*entries, Entry("sampling", 1, ops.elementwise(sampling, 4))]

    def _kernels_of(self, layer: Layer) -> int:
        more = 6 if layer.moe else 0
        if isinstance(layer.attention, Attention) and layer.attention.kv is not None:
            more += round(layer.attention.kv.kernels)
        return len([x for x in self._linears[layer] if x.role != "expert"]) + more + layer.num_norms + 4

    # -- tables -------------------------------------------------------------------------------------------------

    def _tokens_seconds(self, tokens: int) -> float:
        if tokens <= EXACT_TOKENS or tokens % GRID_TOKENS == 0:
            return _seconds(self.token_entries(tokens))
        low = tokens - tokens % GRID_TOKENS
        at_low, at_high = self._by_tokens[low], self._by_tokens[low + GRID_TOKENS]
        return at_low + (at_high - at_low) * ((tokens - low) / GRID_TOKENS)

    def _attention_curves(self, num_decodes: int) -> tuple[Curve, Curve]:
        """All attention layers of a decode batch: over whole contexts, over contexts clipped to the window."""
        full: list[tuple[int, Curve]] = []
        windowed: list[tuple[int, Curve]] = []
        for shape, count in self.attention_shapes:
            curve = decode_curve(self.operators, shape, num_decodes)
            (full if shape.window is None else windowed).append((count, curve))
        return sum_curves(full), sum_curves(windowed)

    def _decode_entry(self, n: int) -> Decode:
        full, windowed = self._attention_curves(n)
        rows = self._decode_rows(n)
        gpu = self._by_tokens[self.overhead.padded(rows)] + self._by_sampled[rows]
        floor = self.overhead.floor_s(n, 1 if self.overhead.full_graphs and n <= self._graph_top else self._launches(n))
        serial = self.overhead.serial_s(n)
        tail = self._tail_s(n)
        if full.knots or windowed.knots or tail:
            return Decode(gpu, 0.0, 0.0, floor, serial, full, windowed, tail)
        gpu += full.base[0] + windowed.base[0]
        return Decode(gpu, full.slope[0], windowed.slope[0], floor, serial, None, None, 0.0)

    def _decode_rows(self, num_decodes: int) -> int:
        """Tokens of a decode batch that one rank computes."""
        return num_decodes

    def _tail_s(self, n: int) -> float:
        """Contexts clipped to a window are equal, or nearly: those layers have no tail."""
        known = zip(self.blocks, self.attention_shapes, strict=True)
        return sum(count * b.tail_s(n) for b, (shape, count) in known if b is not None and shape.window is None)

    def tokens_s(self, tokens: int, sampled: int) -> float:
        """GPU seconds of a step's tokens but for attention, ``sampled`` of them with logits; 0 without tokens."""
        rows = self._by_tokens[self.overhead.padded(tokens)] if tokens else 0.0
        return rows + (self._by_sampled[sampled] if sampled else 0.0)

    def attention_of_chunk(self, new: int, computed: int) -> float:
        """GPU seconds of all layers' attention of one chunk, in kernels of its own."""
        return self._chunk_times * self._chunk(new, computed) + self._prefill_launch

    def _mixed_tokens(self, tokens: int) -> float:
        return self._by_tokens[self.overhead.padded(tokens)] + self._prefill_launch

    def _mixed_cpu(self, num_sequences: int) -> tuple[float, float]:
        return self.overhead.serial_s(num_sequences), self.overhead.floor_s(num_sequences, 0)

    def _launches(self, tokens: int) -> int:
        """Kernels and graphs the CPU launches for a step whose attention runs outside the graphs: with a prefill
        aboard, or when the engine captures pieces alone. Between two attentions lies one piece; above the captured
        sizes every kernel is launched by itself.
        """
        return self._kernels if tokens > self._graph_top else PIECE_LAUNCHES * sum(self.layers.values()) + 1

    # -- StepCost -----------------------------------------------------------------------------------------------

    def decode(  # noqa: PLR0917 - see UnevenStepCost
        self, num_decodes: int, context: int, windowed: int, growing: int, longest: int = 0, squares: int = 0
    ) -> Line:
        """See ``UnevenStepCost``. Bends where the GPU's work outgrows the CPU's, and at the knots of a fit."""
        base, slope, windowed_slope, floor, serial, full, _, _ = self._by_decodes[num_decodes]
        if full is not None:
            return self._bending(num_decodes, context, windowed, growing, longest, squares)
        gpu = base + slope * context + windowed_slope * windowed
        increment = slope * num_decodes + windowed_slope * growing
        if gpu >= floor:
            return _line(Line, (serial + gpu, increment, FOREVER))
        return Line(serial + floor, 0.0, int((floor - gpu) / increment) + 1 if increment > 0.0 else FOREVER)

    def _bending(  # noqa: PLR0917
        self, num_decodes: int, context: int, windowed: int, growing: int, longest: int, squares: int
    ) -> Line:
        """While contexts grow alike, the longest stays as far from their mean; what else there is to the tail changes
        so slowly that it is held until contexts have grown by a quarter.
        """
        entry = self._by_decodes[num_decodes]
        assert entry.full is not None
        assert entry.windowed is not None
        knots, slopes = entry.full.knots, entry.full.slope
        i = bisect_left(knots, context)
        slope = slopes[i]
        gpu = entry.base + entry.full.base[i] + slope * context
        increment = slope * num_decodes
        steps = (knots[i] - context) // num_decodes + 1 if num_decodes and i < len(knots) else FOREVER
        if windowed:
            base_w, slope_w, end_w = entry.windowed.segment(windowed)
            gpu += base_w + slope_w * windowed
            increment += slope_w * growing
            if growing:
                steps = min(steps, (end_w - windowed) // growing + 1)
        if longest and entry.tail:
            ahead = longest - squares / context - self._lag * context  # see Blocks.ahead
            if ahead > 0.0:
                gpu += entry.tail * ahead
            hold = context // (4 * num_decodes) + 1
            if hold < steps:
                steps = hold
        if gpu >= entry.floor:
            return _line(Line, (entry.serial + gpu, increment, int(steps) if steps > 1 else 1))
        if increment > 0.0:
            steps = min(steps, int((entry.floor - gpu) / increment) + 1)
        return Line(entry.serial + entry.floor, 0.0, max(1, int(steps)))

    def mixed(  # noqa: PLR0917
        self, num_decodes: int, context: int, windowed: int, chunks: Sequence[tuple[int, int]], num_sampled: int,
        longest: int = 0, squares: int = 0,
    ) -> float:  # fmt: skip
        """See ``UnevenStepCost``. Attention of decodes and of chunks add up, but in ``flash_attention``."""
        if not chunks:
            return self.decode(num_decodes, context, windowed, 0, longest, squares).first
        tokens, seconds, chunk = num_decodes, 0.0, self._chunk
        for new, computed in chunks:
            tokens += new
            seconds += chunk(new, computed)
        chunk_s = seconds * self._chunk_times
        seconds = chunk_s + self._mixed_gpu[tokens] + self._by_sampled[num_sampled]
        if num_decodes and self.uneven:
            seconds += sum(self.beside(num_decodes, context, windowed, chunks, chunk_s, longest, squares))
        elif num_decodes:
            full, wind = self._mixed_decode[num_decodes]
            i = bisect_left(full.knots, context)
            attention = full.base[i] + full.slope[i] * context
            if windowed:
                attention += wind.at(windowed)
            seconds += attention
        sequences = num_decodes + len(chunks)
        serial, floor = self._cpu[sequences]
        floor += self._launch_eager if tokens > self._graph_top else self._launch_pieces
        return serial + (seconds if seconds > floor else floor)  # noqa: FURB136 - the hot path; max() costs a call

    def beside(  # noqa: PLR0917
        self, num_decodes: int, context: int, windowed: int, chunks: Sequence[tuple[int, int]], chunk_s: float,
        longest: int = 0, squares: int = 0,
    ) -> list[float]:  # fmt: skip
        """Seconds that decodes add to the attention of a mixed step, per kind of layer, all layers of it together.

        chunk_s: attention of the chunks, all layers.
        """
        chunk = chunks[0][0] if len(chunks) == 1 else max([new for new, _ in chunks])
        layer_s = chunk_s / self._attention_layers
        seconds = []
        for count, whole, curve, blocks in self._beside[num_decodes]:
            keys, most = (context, longest) if whole else (windowed, 0)  # clipped contexts are equal, or nearly
            i = bisect_left(curve.knots, keys)
            one = curve.base[i] + curve.slope[i] * keys
            if blocks is not None and keys:
                one = blocks(one, keys, most, squares, chunk, layer_s)
            seconds.append(count * one)
        return seconds

    def _beside_entry(self, n: int) -> list[tuple[int, bool, Curve, Beside | None]]:
        return [
            (count, shape.window is None, decode_curve(self.operators, shape, n), b.beside(n) if b else None)
            for (shape, count), b in zip(self.attention_shapes, self.blocks, strict=True)
        ]


def by_operators(cost: object) -> TypeGuard[OperatorCost]:
    """Whether its steps are the GPU's operators alone, added up: nothing is copied or computed elsewhere."""
    return isinstance(cost, OperatorCost) and type(cost).decode is OperatorCost.decode


def _seconds(entries: Sequence[Entry]) -> float:
    return sum(e.times * e.price.seconds for e in entries)


def _weighted(prices: Sequence[tuple[int, ChunkSeconds]]) -> tuple[int, ChunkSeconds]:
    """Sum over kinds of attention layers, as a multiple of one function."""
    if len(prices) == 1:
        return prices[0]
    return 1, lambda new, computed: sum([n * f(new, computed) for n, f in prices])
