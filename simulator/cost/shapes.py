"""FLOPs and bytes of attention on one tensor-parallel rank: the physics that every correction multiplies."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.model.architecture import AnyAttention, Attention, LatentAttention, LinearAttention
from simulator.model.formats import kv_element_bytes
from simulator.model.kv_compression import WIDE_BYTES, KvCompression
from simulator.model.weights import local_kv_heads


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """One attention layer as one rank runs it. Everything is per layer; rates are FLOPs or bytes per unit.

    Decode: ``context`` tokens cost ``flops_per_context`` and ``bytes_per_context`` each, a sequence
    ``flops_per_sequence`` and ``bytes_per_sequence`` on top; ``weight_bytes`` are read once a step.
    Prefill: a (query, key) pair costs ``flops_per_pair``; a token of the span (cached and new) ``flops_per_span``
    and ``bytes_per_context``; a new token ``flops_per_new`` and ``bytes_per_new``; a chunk ``bytes_per_chunk``.
    """

    kind: str  # softmax | latent | linear
    heads: int
    kv_heads: int
    head_dim: int
    window: int | None
    flops_per_context: float
    bytes_per_context: float
    flops_per_sequence: float
    bytes_per_sequence: float
    weight_bytes: float
    flops_per_pair: float
    flops_per_span: float
    flops_per_new: float
    bytes_per_new: float
    bytes_per_chunk: float
    kv: KvCompression | None = None  # ``bytes_per_context`` is then of a token kept, see ``cost/kv_reads.py``


def attention_shape(a: AnyAttention, tp: int, kv_dtype: str, dtype_bytes: float) -> AttentionShape:
    """Shape of a layer split over ``tp`` ranks."""
    if isinstance(a, Attention):
        return _softmax(a, tp, kv_dtype, dtype_bytes)
    if isinstance(a, LatentAttention):
        return _latent(a, tp, kv_dtype, dtype_bytes)
    return _linear(a, tp, dtype_bytes)


def kv_bytes_per_token_layer(a: AnyAttention, tp: int, kv_dtype: str) -> float:
    """Bytes one rank caches per token of one layer; the latent vector of MLA is replicated on every rank."""
    element, scale = kv_element_bytes(kv_dtype)
    if isinstance(a, Attention):
        if a.kv is not None:
            return _elements(a, tp) * a.kv.stored_bytes(element + scale / a.head_dim)
        return 2 * local_kv_heads(a.num_kv_heads, tp) * (a.head_dim * element + scale)
    if isinstance(a, LatentAttention):
        return a.latent_dim * element + scale
    return 0.0


def state_bytes_layer(a: AnyAttention, tp: int, dtype_bytes: float) -> float:
    """Bytes of recurrent and convolution state one rank keeps per sequence of one linear-attention layer."""
    if not isinstance(a, LinearAttention):
        return 0.0
    return (a.state_elements * a.state_bytes + a.conv_channels * (a.conv_kernel - 1) * dtype_bytes) / tp


def _elements(a: Attention, tp: int) -> int:
    """Of keys and values per token on one rank."""
    return 2 * local_kv_heads(a.num_kv_heads, tp) * a.head_dim


def _kept_bytes(a: Attention, tp: int, kv_dtype: str) -> float:
    """Bytes of keys and values per token kept, on one rank."""
    if a.kv is None:
        return kv_bytes_per_token_layer(a, tp, kv_dtype)
    element, scale = kv_element_bytes(kv_dtype)
    return _elements(a, tp) * a.kv.element_bytes(element + scale / a.head_dim)


def _softmax(a: Attention, tp: int, kv_dtype: str, dtype_bytes: float) -> AttentionShape:
    heads, kv_heads = a.num_heads // tp, local_kv_heads(a.num_kv_heads, tp)
    io = 2.0 * heads * a.head_dim * dtype_bytes  # query in, output out
    pair = 4.0 * heads * a.head_dim  # QK' and PV, a multiply and an add each
    return AttentionShape(
        "softmax", heads, kv_heads, a.head_dim, a.sliding_window,
        flops_per_context=pair, bytes_per_context=_kept_bytes(a, tp, kv_dtype),
        flops_per_sequence=0.0, bytes_per_sequence=io, weight_bytes=0.0,
        flops_per_pair=pair, flops_per_span=0.0, flops_per_new=0.0, bytes_per_new=io, bytes_per_chunk=0.0, kv=a.kv,
    )  # fmt: skip


def _latent(a: LatentAttention, tp: int, kv_dtype: str, dtype_bytes: float) -> AttentionShape:
    """Decode multiplies queries with the latent cache (kv_b_proj absorbed); prefill expands the latents of its span
    into keys and values and runs ordinary attention, which needs fewer FLOPs per pair (DeepSeek-V2, section 2.1.3).
    """
    heads = a.num_heads // tp
    expand = 2.0 * a.kv_lora_rank * heads * (a.qk_nope_head_dim + a.v_head_dim)
    qk = a.qk_nope_head_dim + a.qk_rope_head_dim
    return AttentionShape(
        "latent", heads, 1, qk, None,
        flops_per_context=2.0 * heads * (a.latent_dim + a.kv_lora_rank),
        bytes_per_context=kv_bytes_per_token_layer(a, tp, kv_dtype),
        flops_per_sequence=expand, bytes_per_sequence=heads * (a.latent_dim + a.kv_lora_rank) * dtype_bytes,
        weight_bytes=expand / 2 * dtype_bytes,
        flops_per_pair=2.0 * heads * (qk + a.v_head_dim), flops_per_span=expand, flops_per_new=0.0,
        bytes_per_new=heads * (qk + a.v_head_dim) * dtype_bytes, bytes_per_chunk=expand / 2 * dtype_bytes,
    )  # fmt: skip


def _linear(a: LinearAttention, tp: int, dtype_bytes: float) -> AttentionShape:
    """Per token: decay, correction (k·S), rank-one update and read-out (q·S) of the state, and the short convolution;
    a decode reads and writes the state once. Prefill works in chunks of 64 tokens (arXiv:2412.06464, section 3.3).
    """
    state = a.state_elements / tp
    convolution = 2.0 * a.conv_channels * a.conv_kernel / tp
    io = (a.conv_channels + a.num_value_heads * a.value_head_dim) / tp * dtype_bytes
    both_ways = 2.0 * state_bytes_layer(a, tp, dtype_bytes)
    in_chunk = 2.0 * 64 * a.num_value_heads / tp * (2 * a.key_head_dim + 2 * a.value_head_dim)
    return AttentionShape(
        "linear", a.num_value_heads // tp, a.num_key_heads // tp, a.value_head_dim, None,
        flops_per_context=0.0, bytes_per_context=0.0,
        flops_per_sequence=7.0 * state + convolution, bytes_per_sequence=both_ways + io, weight_bytes=0.0,
        flops_per_pair=0.0, flops_per_span=0.0, flops_per_new=6.0 * state + in_chunk + convolution,
        bytes_per_new=io, bytes_per_chunk=both_ways,
    )  # fmt: skip


def attended_pairs(new: int, computed: int, window: int | None) -> float:
    """(query, key) pairs of a causal chunk: query ``i`` sees ``computed + i`` keys (its own too), or a window."""
    if window is None or computed + new <= window:
        return new * (computed + 0.5 * (new + 1))
    ramp = window - computed  # queries whose view is still growing
    if ramp <= 0:
        return float(new * window)
    return ramp * (computed + 0.5 * (ramp + 1)) + (new - ramp) * float(window)


def prefill_physics(shape: AttentionShape, new: int, computed: int) -> tuple[float, float]:
    """(FLOPs, bytes) of one chunk through one layer."""
    seen = computed if shape.window is None else min(computed, shape.window - 1)
    span = seen + new
    flops = attended_pairs(new, computed, shape.window) * shape.flops_per_pair + span * shape.flops_per_span
    size = span * shape.bytes_per_context + new * shape.bytes_per_new + shape.bytes_per_chunk
    return flops + new * shape.flops_per_new, size


def read_per_context(shape: AttentionShape) -> float:
    """Keys a decode reads per token of context, as so many of the stored width; the index beside them included."""
    kv = shape.kv
    if kv is None:
        return 1.0
    return kv.keep * (kv.read + kv.index * WIDE_BYTES / _element_bytes(shape))


def residual_keys(shape: AttentionShape) -> float:
    """Keys a decode reads per sequence beside those of its context, as so many of the stored width."""
    return 0.0 if shape.kv is None else shape.kv.residual_keys(_element_bytes(shape))


def keys_read(shape: AttentionShape, num_decodes: int, context: float) -> float:
    """Keys that decodes read, as so many of the stored width."""
    return read_per_context(shape) * context + num_decodes * residual_keys(shape)


def _element_bytes(shape: AttentionShape) -> float:
    return shape.bytes_per_context / (2.0 * shape.kv_heads * shape.head_dim)


def decode_physics(shape: AttentionShape, num_decodes: int, context: float) -> tuple[float, float]:
    """(FLOPs, bytes) of ``num_decodes`` queries over ``context`` keys in all (clipped to the window by the caller)."""
    if shape.kv is not None:
        context = keys_read(shape, num_decodes, context)
    flops = context * shape.flops_per_context + num_decodes * shape.flops_per_sequence
    return flops, context * shape.bytes_per_context + num_decodes * shape.bytes_per_sequence + shape.weight_bytes
