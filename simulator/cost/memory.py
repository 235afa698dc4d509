"""Where a GPU's memory goes, and how many KV blocks are left: vLLM's start-up arithmetic."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from simulator.core.errors import HardwareError, ModelError, UserError
from simulator.core.units import format_bytes
from simulator.cost.defaults import batch_defaults, engine_overhead
from simulator.cost.expert_serving import ExpertServing
from simulator.cost.hosted import Offload
from simulator.cost.kv_layout import KvLayout, kv_layout
from simulator.cost.placement import Deployment, Placed, TensorLayout, place, stage_ranges
from simulator.cost.shapes import attention_shape, kv_bytes_per_token_layer
from simulator.hardware.gpu import Gpu
from simulator.model.architecture import LatentAttention, Layer, Model
from simulator.model.kv_compression import WIDE_BYTES
from simulator.model.weights import Linear, format_of, layer_weight_bytes, linear_bytes, vocab_rows

MIB = 1024**2
# What vLLM charges to non-torch memory after its first snapshot: attention workspaces, symmetric buffers of the custom
# all-reduce. The CUDA context, NCCL and cuBLAS exist before that snapshot and are not charged: they live in the share
# gpu_memory_utilization leaves free. Both figures are assumptions in the range start-up logs print.
NON_TORCH_BYTES = 160 * MIB
NON_TORCH_PER_GROUP_BYTES = 128 * MIB  # on top when tensor parallel
CONTEXT_BYTES = 900 * MIB
# A captured graph keeps its kernels' arguments and its share of the pool (assumption: about 0.6 GiB for the 2 x 51
# graphs of a 32-layer model, as start-up logs print).
GRAPH_BYTES_PER_LAYER = 0.18 * MIB
# Logits in 16 bits, their fp32 copy, probabilities and the sampler's scratch.
LOGIT_BYTES = 14


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes per GPU of the tightest pipeline stage. ``requested = weights + activation + non_torch + graphs + KV``."""

    model: str
    gpu: str
    num_gpus: int
    total_bytes: int
    requested_bytes: int  # total x gpu_memory_utilization
    weight_bytes: int
    activation_bytes: int
    non_torch_bytes: int
    graph_bytes: int
    kv_cache_bytes: int  # num_gpu_blocks x block_bytes
    num_gpu_blocks: int  # one of them is vLLM's null block
    block_size: int  # tokens per block of the (first) attention group, on one rank
    block_bytes: int
    kv_bytes_per_token: float  # of a token every layer still holds, on one GPU
    kv_tokens: int  # what vLLM logs as the size of the cache: max_concurrency x max_model_len
    max_model_len: int
    max_concurrency: float  # requests of max_model_len at once
    layout: KvLayout

    @property
    def terms(self) -> tuple[tuple[str, int], ...]:
        """(name, bytes) of every part of the GPU's memory; they sum to ``total_bytes``."""
        parts = [
            ("weights", self.weight_bytes),
            ("peak activation", self.activation_bytes),
            ("non-torch (workspaces, NCCL)", self.non_torch_bytes),
            ("CUDA graphs", self.graph_bytes),
            ("KV cache", self.kv_cache_bytes),
        ]
        rest = self.requested_bytes - sum(size for _, size in parts)
        parts.append(("rounding to blocks, or unused under num_gpu_blocks_override", rest))
        parts.append(("left free (CUDA context, 1 - gpu_memory_utilization)", self.total_bytes - self.requested_bytes))
        return tuple(parts)


def kv_bytes_per_token(model: Model, tp: int = 1, kv_cache_dtype: str = "bfloat16") -> float:
    """Bytes one rank caches per token in all layers, sliding-window layers as if the token were in the window."""
    return sum(kv_bytes_per_token_layer(x.attention, tp, kv_cache_dtype) for x in model.layers)


def memory_plan(
    model: Model,
    gpu: Gpu,
    *,
    tp: int = 1,
    pp: int = 1,
    dtype: str = "auto",
    quantization: str | None = None,
    kv_cache_dtype: str = "auto",
    gpu_memory_utilization: float = 0.92,
    max_num_batched_tokens: int | None = None,
    max_num_seqs: int | None = None,
    block_size: int = 16,
    max_model_len: int = 0,
    num_gpu_blocks_override: int | None = None,
    enable_expert_parallel: bool = False,
    async_scheduling: bool = True,
    enforce_eager: bool = False,
    data_parallel_size: int = 1,
    num_redundant_experts: int = 0,
    prefill_context_parallel_size: int = 1,
    decode_context_parallel_size: int = 1,
    tensor_parallel_layout: TensorLayout = "1d",
    cached_experts: float | None = None,
    offload: Offload | None = None,
    kv_lenders: int = 1,
    layers: tuple[int, int] | None = None,
) -> MemoryPlan:
    """Memory of a deployment, as vLLM 0.33 finds it (``gpu_worker.determine_available_memory``); of each rank, and the
    KV cache of each, with ``data_parallel_size``. With context parallel sizes a request's KV, and a step's prompt
    tokens, are spread over the ranks: a block holds so many times ``block_size`` tokens.

    kv_lenders: replicas whose KV caches one request may fill. layers: held here (first, end); None: all.
    None for the batch limits means vLLM's defaults on this GPU, 0 for ``max_model_len`` the model's. Raises
    HardwareError when weights and activations exceed the GPU, or one request of ``max_model_len`` the KV cache, by how
    much, and what would help; ModelError when the model cannot be cut that way.
    """
    request = _Request(
        model, gpu,
        Deployment(
            tp, pp, enable_expert_parallel, dtype, quantization, kv_cache_dtype, data_parallel_size,
            enable_eplb=num_redundant_experts > 0, num_redundant_experts=num_redundant_experts,
            prefill_context_parallel_size=prefill_context_parallel_size,
            decode_context_parallel_size=decode_context_parallel_size,
            tensor_parallel_layout=tensor_parallel_layout,
            experts=None if cached_experts is None else ExpertServing(cached_experts=cached_experts),
            offload=offload, layers=layers,
        ),
        gpu_memory_utilization, max_num_batched_tokens, max_num_seqs, block_size, max_model_len,
        num_gpu_blocks_override, async_scheduling, enforce_eager, kv_lenders,
    )  # fmt: skip
    return request.plan()


@dataclass(frozen=True, slots=True)
class _Request:
    model: Model
    gpu: Gpu
    deployment: Deployment
    utilization: float
    batched_tokens: int | None
    seqs: int | None
    block_size: int
    model_len: int
    override: int | None
    async_scheduling: bool
    eager: bool
    lenders: int = 1

    def plan(self) -> MemoryPlan:
        self._check_arguments()
        model, gpu, placed = self.model, self.gpu, place(self.model, self.gpu, self.deployment)
        tokens, seqs = self._limits()
        cut = placed.context_ranks
        max_model_len = self.model_len or model.max_model_len
        requested = math.ceil(gpu.memory_bytes * self.utilization)
        non_torch = NON_TORCH_BYTES + NON_TORCH_PER_GROUP_BYTES * ((placed.tp > 1) + (placed.dp > 1) + (placed.pcp > 1))
        layout = kv_layout(model, placed.tp, placed.kv_dtype, self.block_size, placed.dtype_bytes)
        best: tuple[int, int, int, int, int] | None = None
        for stage in stage_ranges(model.num_layers, placed):
            weights = _stage_weights(model, placed, stage)
            graphs = 0 if self.eager else self._graphs(len(stage), tokens, seqs)
            activation = _peak_activation(model, placed, stage, -(-tokens // placed.pcp), seqs)
            if placed.layout != "1d":  # as if every rank had all of the weights and its share of the tokens
                activation = _peak_activation(model, replace(placed, tp=1), stage, -(-tokens // placed.tp), seqs)
            available = requested - weights - activation - non_torch - graphs
            block_bytes = layout.block_bytes(stage)
            if placed.offload is None:
                blocks = available // block_bytes
            else:
                blocks, weights = self._offloaded(placed, placed.offload, available, weights, block_bytes)
            if best is None or blocks < best[0]:
                best = (blocks, weights, activation, graphs, block_bytes)
        assert best is not None
        blocks, weights, activation, graphs, block_bytes = best
        if blocks <= 0:
            self._too_small(weights + activation + non_torch + graphs - requested, weights)
        blocks = blocks if self.override is None else self.override
        if placed.offload is not None:
            block_bytes = round(block_bytes * placed.offload.kv_on_gpu(_index_share(model, placed)))
        beside = weights + activation + non_torch + graphs
        if beside + blocks * block_bytes > gpu.memory_bytes:
            raise HardwareError(
                f"num_gpu_blocks_override = {blocks} blocks of {format_bytes(block_bytes)} and {format_bytes(beside)} "
                f"of weights and activations exceed the {format_bytes(gpu.memory_bytes)} of {gpu.name}",
                where="num_gpu_blocks_override",
                remedy=f"Give at most {(gpu.memory_bytes - beside) // block_bytes}, or leave it out.",
            )
        batches = max(placed.pp, 2 if self.async_scheduling else 1)
        per_request = layout.blocks_per_request(-(-max_model_len // cut), batches * tokens)
        reached = (blocks - 1) * self.lenders + 1
        self._check_length(layout, reached, block_bytes, per_request, max_model_len, batches * tokens)
        concurrency = blocks / per_request
        return MemoryPlan(
            model.name, gpu.name, placed.num_gpus, gpu.memory_bytes, requested, weights, activation, non_torch,
            graphs, blocks * block_bytes, blocks, _attention_block_size(layout), block_bytes,
            kv_bytes_per_token(model, placed.tp, placed.kv_dtype), int(concurrency * max_model_len), max_model_len,
            concurrency, layout,
        )  # fmt: skip

    def _offloaded(
        self, placed: Placed, offload: Offload, available: int, weights: int, block_bytes: int
    ) -> tuple[int, int]:
        """(KV blocks, weights in GPU memory) where some of both lie on the host. available: beside all the weights."""
        layer_bytes = sum(
            layer_weight_bytes(self.model, layer, placed.tp, placed.dtype, placed.quantization)
            for layer in self.model.layers
        )
        saved = round(offload.weights_saved(layer_bytes, self.model.num_layers))
        index = _index_share(self.model, placed)
        on_gpu, room = block_bytes * offload.kv_on_gpu(index), available + saved
        elsewhere = offload.blocks(block_bytes * placed.tp, layer_bytes * placed.tp, index)
        blocks = int(room // on_gpu) if on_gpu else elsewhere
        if elsewhere is not None and blocks is not None and room > 0:
            blocks = min(blocks, elsewhere)
        return blocks if blocks is not None and room > 0 else 0, weights - saved

    def _check_arguments(self) -> None:
        if not 0 < self.utilization <= 1:
            raise HardwareError(
                f"gpu_memory_utilization is {self.utilization}",
                where="gpu_memory_utilization",
                remedy="Give a share above 0, up to 1.",
            )
        if self.block_size < 1 or (self.override is not None and self.override < 1):
            raise HardwareError("block_size and num_gpu_blocks_override must be positive", where="block_size")
        if self.model_len > self.model.max_model_len:
            raise ModelError(
                f"max_model_len = {self.model_len} exceeds the positions of {self.model.name}",
                where="max_model_len",
                remedy=f"Give at most {self.model.max_model_len}, the model's own.",
            )

    def _limits(self) -> tuple[int, int]:
        chosen = batch_defaults(self.gpu, self.model)
        return self.batched_tokens or chosen.max_num_batched_tokens, self.seqs or chosen.max_num_seqs

    def _graphs(self, num_layers: int, tokens: int, seqs: int) -> int:
        """Mixed batches are captured piecewise and decode batches in full, the latter up to ``max_num_seqs``."""
        sizes = engine_overhead(self.gpu, max_num_seqs=seqs, max_num_batched_tokens=tokens).graph_sizes
        graphs = len(sizes) + sum(1 for s in sizes if s <= seqs)
        return round(graphs * num_layers * GRAPH_BYTES_PER_LAYER)

    def _too_small(self, missing: int, weights: int) -> None:
        raise HardwareError(
            f"{self.model.name} does not fit {self._placement()}: weights take {format_bytes(weights)} and with "
            f"activations and graphs exceed {self.utilization:g} of {format_bytes(self.gpu.memory_bytes)} by "
            f"{format_bytes(missing)} per GPU",
            remedy=self._remedy(),
        )

    def _check_length(
        self, layout: KvLayout, blocks: int, block_bytes: int, per_request: int, max_model_len: int, in_flight: int
    ) -> None:  # fmt: skip
        """One request of ``max_model_len`` must fit beside the null block."""
        if blocks - 1 >= per_request:
            return
        missing = (per_request - blocks + 1) * block_bytes
        d = self.deployment
        cut = d.prefill_context_parallel_size * d.decode_context_parallel_size
        fitting = min(cut * _longest(layout, blocks - 1, -(-max_model_len // cut), in_flight), max_model_len)
        raise HardwareError(
            f"one request of max_model_len = {max_model_len} tokens needs {per_request} KV blocks, {blocks - 1} are "
            f"usable on {self._placement()}: {format_bytes(missing)} short",
            where="num_gpu_blocks_override" if self.override is not None else "max_model_len",
            remedy=self._remedy(fitting),
        )

    def _placement(self) -> str:
        d = self.deployment
        tp, pp, dp = d.tensor_parallel_size, d.pipeline_parallel_size, d.data_parallel_size
        pcp = d.prefill_context_parallel_size
        sizes = f"tp {tp}, pp {pp}{f', dp {dp}' if dp > 1 else ''}{f', pcp {pcp}' if pcp > 1 else ''}"
        return f"{tp * pp * dp * pcp} x {self.gpu.name} ({sizes})"

    def _remedy(self, max_model_len: int = 0) -> str:
        """What would fit, tried out: shorter requests (0: none would), more ranks, narrower weights."""
        fixes = [f"max_model_len: {max_model_len}"] if max_model_len else []
        if self.override is not None:
            larger = "a larger num_gpu_blocks_override, or none"
            return f"Set {fixes[0]}, or give {larger}." if fixes else f"Give {larger}."
        tp = next((n for n in (2, 4, 8, 16) if n > self.deployment.tensor_parallel_size and self._fits(tp=n)), None)
        if tp:
            fixes.append(f"tensor_parallel_size: {tp}")
        for name in ("fp8", "int4"):
            if self._fits(quantization=name):
                fixes.append(f"quantization: {name}")
                break
        return f"It fits with {' or '.join(fixes)}." if fixes else "No tensor_parallel_size up to 16 fits."

    def _fits(self, tp: int | None = None, quantization: str | None = None) -> bool:
        d = self.deployment
        tried = replace(
            d, tensor_parallel_size=tp or d.tensor_parallel_size, quantization=quantization or d.quantization
        )
        trial = _Trial(
            self.model, self.gpu, tried, self.utilization, self.batched_tokens, self.seqs, self.block_size,
            self.model_len, None, self.async_scheduling, self.eager,
        )  # fmt: skip
        try:
            trial.plan()
        except UserError:
            return False
        return True


class _Trial(_Request):
    """A plan tried to word a remedy; its own failure needs none."""

    __slots__ = ()

    def _remedy(self, max_model_len: int = 0) -> str:
        return ""


def _index_share(model: Model, p: Placed) -> float:
    """Of the bytes of a compressed KV cache, those of an index that stays in GPU memory."""
    shape = attention_shape(model.layers[0].attention, p.tp, p.kv_dtype, p.dtype_bytes)
    if shape.kv is None or not shape.kv.index:
        return 0.0
    index = WIDE_BYTES * shape.kv.index * 2 * shape.kv_heads * shape.head_dim
    return index / (index + shape.bytes_per_context)


def _left_in_host(model: Model, layer: Layer, p: Placed) -> float:
    """Bytes of the experts of a layer that are not cached on the GPU."""
    if p.experts is None or p.experts.cached_experts is None or layer.moe is None:
        return 0.0
    experts = [x for x in p.linears(model, layer) if x.role == "expert"]
    size = sum(linear_bytes(x, format_of(x, p.dtype, p.quantization), p.dtype_bytes) for x in experts)
    return size * max(1.0 - p.experts.cached_experts / layer.moe.num_experts, 0.0)


def _stage_weights(model: Model, p: Placed, stage: range) -> int:
    """Layers of the stage; the embedding on the first, the final norm and lm_head on the last."""
    size = sum(
        layer_weight_bytes(model, model.layers[i], p.tp, p.dtype, p.quantization, p.expert_parallel, p.dp, p.redundant)
        for i in stage
    )
    size -= sum(_left_in_host(model, model.layers[i], p) for i in stage)
    rows = vocab_rows(model.vocab_size, p.tp) * model.hidden_size * p.dtype_bytes
    first, last = stage.start == 0, stage.stop == model.num_layers
    if first:
        size += rows + model.learned_positions * model.hidden_size * p.dtype_bytes
    if last:
        size += model.hidden_size * p.dtype_bytes * (2 if model.norm_bias else 1)
        size += 0 if model.tie_word_embeddings and first else rows
    return round(size)


def _peak_activation(model: Model, p: Placed, stage: range, tokens: int, seqs: int) -> int:
    """Largest set of tensors alive at once in vLLM's profiling run of ``tokens`` tokens and ``seqs`` sampled rows.

    Inside a layer the hidden states and the residual live beside the widest operator: in the MLP its up-projection and
    the activated half; in attention queries, keys, values and the output; with experts the rows replicated ``top_k``
    times (vLLM's fused MoE reuses one buffer for its first and last product). At the end the logits of every sampled
    row, on the last stage, beside the hidden states.
    """
    row = model.hidden_size * p.dtype_bytes
    widest = 0.0
    for layer in {model.layers[i] for i in stage}:
        linears = p.linears(model, layer)
        widest = max(widest, *(_alive(model, x, tokens * p.dtype_bytes, linears, p.dp) for x in linears))
        if isinstance(layer.attention, LatentAttention):  # latents expanded to keys and values of all heads
            a = layer.attention
            expanded = a.num_heads / p.tp * (2 * (a.qk_nope_head_dim + a.qk_rope_head_dim) + 2 * a.v_head_dim)
            widest = max(widest, tokens * expanded * p.dtype_bytes)
    peak = 2 * tokens * row + widest
    if stage.stop == model.num_layers:
        logits = seqs * model.vocab_size * LOGIT_BYTES
        peak = max(peak, tokens * row + min(seqs, tokens) * row + logits)
    return round(peak)


def _alive(model: Model, linear: Linear, token_bytes: float, linears: tuple[Linear, ...], dp: int) -> float:
    """Bytes beside hidden states and residual while a matrix and what follows it run (``token_bytes``: all tokens).
    Experts see the tokens of all ``dp`` ranks.
    """
    if linear.role == "expert":
        if linear.name != "experts_gate_up":
            return 0.0
        inner = next(x.in_features for x in linears if x.name == "experts_down")
        return (token_bytes * dp) * (
            linear.per_token * (max(linear.out_features, model.hidden_size) + inner) + model.hidden_size
        )
    if linear.name.endswith("gate_up_proj"):
        return token_bytes * linear.out_features * 1.5
    return token_bytes * (linear.out_features + linear.in_features)


def _attention_block_size(layout: KvLayout) -> int:
    attention = [g for g in layout.groups if g.kind != "linear_attention"]
    return min((g.block_size for g in attention), default=layout.groups[0].block_size)


def _longest(layout: KvLayout, blocks: int, upper: int, in_flight: int) -> int:
    """Longest request that fits (0: none), by bisection as vLLM does."""
    low, high = 0, upper
    while low < high:
        middle = (low + high + 1) // 2
        if layout.blocks_per_request(middle, in_flight) <= blocks:
            low = middle
        else:
            high = middle - 1
    return low
