"""Every weight of a model as seen by one tensor-parallel rank.

One list of matrices serves three readers: parameter counts (tp = 1), bytes of memory, and the GEMMs a step runs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal

from simulator.core.errors import ModelError
from simulator.model.architecture import AnyAttention, Attention, LatentAttention, Layer, Mlp, Model, Moe
from simulator.model.formats import Quantization, WeightFormat, weight_format

Role = Literal["attention", "mlp", "shared_expert", "router", "expert"]


@dataclass(frozen=True, slots=True)
class Linear:
    """``copies`` matrices of ``out_features x in_features``, as one rank holds them.

    ``per_token``: how many of the copies one token visits (on all ranks together for experts spread over ranks).
    """

    name: str
    role: Role
    out_features: int
    in_features: int
    bias: bool = False
    copies: int = 1
    per_token: float = 1.0
    absorbed: bool = False  # held as a weight, multiplied inside the attention kernel (MLA's kv_b_proj)

    @property
    def parameters(self) -> int:
        return self.copies * self.out_features * (self.in_features + (1 if self.bias else 0))


@dataclass(frozen=True, slots=True)
class ParameterCount:
    total: int
    active: int  # a token's forward pass multiplies these: no unvisited experts, no embedding look-up
    embedding: int  # input embedding (and learned positions)


def shard(size: int, tp: int, what: str, model: str) -> int:
    if size % tp:
        raise ModelError(
            f"{model}: {what} = {size} is not divisible by tensor_parallel_size = {tp}",
            where="tensor_parallel_size",
            remedy=f"Choose one of {', '.join(str(n) for n in (1, 2, 4, 8, 16) if size % n == 0)}.",
        )
    return size // tp


def local_kv_heads(num_kv_heads: int, tp: int, model: str = "model") -> int:
    """KV heads on one rank; heads are replicated once there are more ranks than heads (as vLLM and Megatron do)."""
    if tp > num_kv_heads:
        if tp % num_kv_heads:
            raise ModelError(
                f"{model}: tensor_parallel_size = {tp} is no multiple of the {num_kv_heads} KV heads",
                where="tensor_parallel_size",
                remedy="Choose a divisor or a multiple of the number of KV heads.",
            )
        return 1
    return shard(num_kv_heads, tp, "num_key_value_heads", model)


def attention_linears(a: AnyAttention, hidden: int, tp: int, model: str) -> tuple[Linear, ...]:
    if isinstance(a, Attention):
        heads = shard(a.num_heads, tp, "num_attention_heads", model)
        kv_heads = local_kv_heads(a.num_kv_heads, tp, model)
        columns = heads * (2 if a.output_gate else 1) + kv_heads * (1 if a.key_is_value else 2)
        return (
            Linear("qkv_proj", "attention", columns * a.head_dim, hidden, a.qkv_bias),
            Linear("o_proj", "attention", hidden, heads * a.head_dim, a.out_bias),
        )
    if isinstance(a, LatentAttention):
        return _latent_linears(a, hidden, tp, model)
    key = shard(a.num_key_heads, tp, "linear_num_key_heads", model) * a.key_head_dim
    heads = shard(a.num_value_heads, tp, "linear_num_value_heads", model)
    value = heads * a.value_head_dim
    return (
        Linear("in_proj_qkvz", "attention", 2 * key + 2 * value, hidden),
        Linear("in_proj_ba", "attention", 2 * heads, hidden),
        Linear("o_proj", "attention", hidden, value),
    )


def _latent_linears(a: LatentAttention, hidden: int, tp: int, model: str) -> tuple[Linear, ...]:
    heads = shard(a.num_heads, tp, "num_attention_heads", model)
    q_out = heads * (a.qk_nope_head_dim + a.qk_rope_head_dim)
    # The low-rank down-projections are replicated on every rank.
    if a.q_lora_rank is None:
        queries = (Linear("q_proj", "attention", q_out, hidden), Linear("kv_a_proj", "attention", a.latent_dim, hidden))
    else:
        queries = (
            Linear("qkv_a_proj", "attention", a.q_lora_rank + a.latent_dim, hidden),
            Linear("q_b_proj", "attention", q_out, a.q_lora_rank),
        )
    kv_b = heads * (a.qk_nope_head_dim + a.v_head_dim)
    return (
        *queries,
        Linear("kv_b_proj", "attention", kv_b, a.kv_lora_rank, absorbed=True),
        Linear("o_proj", "attention", hidden, heads * a.v_head_dim),
    )


def mlp_linears(m: Mlp, hidden: int, tp: int, model: str, role: Role = "mlp") -> tuple[Linear, ...]:
    inner = shard(m.intermediate_size, tp, "intermediate_size", model)
    shared = "shared_" if role == "shared_expert" else ""
    return (
        Linear(
            shared + ("gate_up_proj" if m.gated else "up_proj"), role, inner * (2 if m.gated else 1), hidden, m.bias
        ),
        Linear(shared + "down_proj", role, hidden, inner, m.bias),
    )


def moe_linears(  # noqa: PLR0917 - how experts are spread
    m: Moe, hidden: int, tp: int, model: str, expert_parallel: bool, dp: int = 1, redundant: int = 0
) -> tuple[Linear, ...]:
    """With ``expert_parallel`` each of ``tp x dp`` ranks holds ``(num_experts + redundant) / (tp x dp)`` whole experts,
    otherwise a slice of every one."""
    ranks = tp * dp
    copies = _per_rank(m.num_experts, redundant, tp, dp, model) if expert_parallel else m.num_experts
    inner = m.intermediate_size if expert_parallel else -(-m.intermediate_size // ranks)
    wide = inner * (2 if m.gated else 1)
    per_token = m.top_k / ranks if expert_parallel else float(m.top_k)
    shared = Mlp(m.shared_intermediate_size, m.gated) if m.shared_intermediate_size else None
    return (
        Linear("router", "router", m.num_experts, hidden, m.bias),
        Linear("experts_gate_up", "expert", wide, hidden, m.bias, copies, per_token),
        Linear("experts_down", "expert", hidden, inner, m.bias, copies, per_token),
        *(mlp_linears(shared, hidden, tp, model, "shared_expert") if shared else ()),
    )


def _per_rank(num_experts: int, redundant: int, tp: int, dp: int, model: str) -> int:
    """Experts on each of ``tp x dp`` ranks, redundant ones included."""
    if dp == 1 and not redundant:
        return shard(num_experts, tp, "num_experts", model)
    ranks, experts = tp * dp, num_experts + redundant
    if experts % ranks:
        missing = -experts % ranks
        raise ModelError(
            f"{model}: {num_experts} experts and {redundant} redundant ones do not spread evenly over {ranks} ranks",
            where="num_redundant_experts",
            remedy=f"Set enable_eplb and num_redundant_experts: {redundant + missing}, or use other sizes.",
        )
    return experts // ranks


def layer_linears(  # noqa: PLR0917 - a deployment
    model: Model, layer: Layer, tp: int = 1, expert_parallel: bool = False, dp: int = 1, redundant: int = 0
) -> tuple[Linear, ...]:
    """Matrices of one layer on one rank, in the order a step runs them. Raises ModelError where tp does not divide.

    dp: data-parallel ranks over which the experts are spread too; redundant: copies of experts beside the model's own.
    """
    hidden, name = model.hidden_size, model.name
    return (
        *attention_linears(layer.attention, hidden, tp, name),
        *(mlp_linears(layer.mlp, hidden, tp, name) if layer.mlp else ()),
        *(moe_linears(layer.moe, hidden, tp, name, expert_parallel, dp, redundant) if layer.moe else ()),
    )


def small_parameters(model: Model, layer: Layer) -> int:
    """Norms and other vectors of a layer; replicated on every rank, never quantised."""
    a, h = layer.attention, model.hidden_size
    n = layer.num_norms * h * (2 if model.norm_bias else 1)
    if isinstance(a, Attention):
        n += (2 * a.head_dim if a.qk_norm else 0) + (a.num_heads if a.sinks else 0)
    elif isinstance(a, LatentAttention):
        n += (a.q_lora_rank or 0) + a.kv_lora_rank
    else:
        n += a.conv_channels * a.conv_kernel + 2 * a.num_value_heads + a.value_head_dim
    if layer.moe:
        n += (layer.moe.num_experts if layer.moe.routing_bias else 0) + (h if layer.moe.shared_gate else 0)
    return n


def parameters(model: Model) -> ParameterCount:
    """Parameters of the text model (no vision tower, no draft layers)."""
    embedding = (model.vocab_size + model.learned_positions) * model.hidden_size
    lm_head = model.vocab_size * (model.hidden_size + (1 if model.lm_head_bias else 0))
    total = embedding + (0 if model.tie_word_embeddings else lm_head)
    active = lm_head
    final_norm = model.hidden_size * (2 if model.norm_bias else 1)
    for layer, count in Counter(model.layers).items():
        small = small_parameters(model, layer)
        for linear in layer_linears(model, layer):
            total += count * linear.parameters
            active += count * round(linear.parameters * linear.per_token / linear.copies)
        total += count * small
        active += count * small
    return ParameterCount(total + final_norm, active + final_norm, embedding)


def format_of(linear: Linear, dtype: str, quantization: Quantization | None) -> WeightFormat:
    """Format one matrix is stored in: routers always keep ``dtype``, scope ``experts`` quantises experts alone."""
    if quantization is None or linear.role == "router":
        return weight_format(dtype)
    if quantization.scope == "experts" and linear.role != "expert":
        return weight_format(dtype)
    return weight_format(quantization.format)


def linear_bytes(linear: Linear, fmt: WeightFormat, dtype_bytes: float) -> float:
    weights = linear.out_features * linear.in_features * fmt.bytes_per_weight(linear.in_features)
    return linear.copies * (weights + (linear.out_features * dtype_bytes if linear.bias else 0.0))


def layer_weight_bytes(  # noqa: PLR0917 - a deployment in full
    model: Model, layer: Layer, tp: int, dtype: str, quantization: Quantization | None, expert_parallel: bool = False,
    dp: int = 1, redundant: int = 0,
) -> float:  # fmt: skip
    """Bytes one rank holds of a layer."""
    wide = weight_format(dtype).bits / 8
    linears = layer_linears(model, layer, tp, expert_parallel, dp, redundant)
    return small_parameters(model, layer) * wide + sum(
        linear_bytes(x, format_of(x, dtype, quantization), wide) for x in linears
    )


def vocab_rows(vocab_size: int, tp: int) -> int:
    """Rows of the vocabulary on one rank: vLLM pads the vocabulary to a multiple of 64, then shards it."""
    return -(-vocab_size // 64) * 64 // tp
