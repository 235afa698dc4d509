"""The few numbers of a ``config.json`` that decide which kernels a decoder runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profiler.measure.errors import CampaignError


@dataclass(frozen=True, slots=True)
class DecoderShape:
    """A decoder of equal layers: RMSNorm, rotary GQA attention, gated MLP or mixture of experts."""

    name: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inter: int  # of the MLP, or of one expert
    vocab: int
    experts: int = 0  # 0: dense
    top_k: int = 0
    window: int | None = None
    rope_theta: float = 10_000.0
    tied: bool = False

    @property
    def qkv(self) -> int:
        """Columns of the fused query, key and value projection."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(n, k) of every dense product, by name."""
        found = {
            "qkv_proj": (self.qkv, self.hidden),
            "o_proj": (self.hidden, self.heads * self.head_dim),
            "lm_head": (self.vocab, self.hidden),
        }
        if self.experts:
            return found | {"router": (self.experts, self.hidden)}
        return found | {"gate_up_proj": (2 * self.inter, self.hidden), "down_proj": (self.hidden, self.inter)}

    @property
    def unfused_linears(self) -> dict[str, tuple[int, int]]:
        """As eager model code holds them: no fused projections."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        found = {name: (n, self.hidden) for name, n in (("q_proj", q), ("k_proj", kv), ("v_proj", kv))}
        found |= {name: self.linears[name] for name in ("o_proj", "lm_head")}
        if self.experts:
            return found | {"router": (self.experts, self.hidden)}
        inner = (self.inter, self.hidden)
        return found | {"gate_proj": inner, "up_proj": inner, "down_proj": (self.hidden, self.inter)}

    @property
    def parameters(self) -> int:
        attention = self.hidden * (self.qkv + self.heads * self.head_dim)
        mlp = 3 * self.hidden * self.inter * max(self.experts, 1) + self.experts * self.hidden
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        return self.layers * (attention + mlp + 2 * self.hidden) + embeddings + self.hidden

    def config(self) -> dict[str, Any]:
        """As a Hugging Face ``config.json``: Llama, or Mixtral with experts."""
        moe = {"num_local_experts": self.experts, "num_experts_per_tok": self.top_k} if self.experts else {}
        return {
            "architectures": ["MixtralForCausalLM" if moe else "LlamaForCausalLM"],
            "model_type": "mixtral" if moe else "llama",
            "hidden_size": self.hidden, "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim, "intermediate_size": self.inter,
            "vocab_size": self.vocab, "max_position_embeddings": 131_072, "rope_theta": self.rope_theta,
            "tie_word_embeddings": self.tied, "hidden_act": "silu", "rms_norm_eps": 1e-5,
            "sliding_window": self.window, **moe,
        }  # fmt: skip


def from_config(config: Mapping[str, Any], name: str, where: str) -> DecoderShape:
    """Llama-like ``config.json`` (Llama, Mistral, Qwen, Mixtral, Qwen-MoE). Raises CampaignError on a missing field."""
    config = config.get("text_config", config)

    def number(*keys: str, default: int | None = None) -> int:
        value = next((config[k] for k in keys if config.get(k) is not None), default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            text = "is missing" if value is None else f"is {value!r}, not a whole number"
            raise CampaignError(f"{keys[0]} {text}", where=where, remedy="Give the fields of a Llama-like config.json.")
        return value

    hidden, heads = number("hidden_size"), number("num_attention_heads")
    experts = number("num_local_experts", "num_experts", "n_routed_experts", default=0)
    window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
    if heads == 0 or hidden == 0:
        raise CampaignError("hidden_size and num_attention_heads must be positive", where=where)
    shape = DecoderShape(
        name=name,
        hidden=hidden,
        layers=number("num_hidden_layers"),
        heads=heads,
        kv_heads=number("num_key_value_heads", default=heads),
        head_dim=number("head_dim", default=hidden // heads),
        inter=number("moe_intermediate_size", "intermediate_size") if experts else number("intermediate_size"),
        vocab=number("vocab_size"),
        experts=experts,
        top_k=number("num_experts_per_tok", "moe_topk", default=2) if experts else 0,
        window=window if isinstance(window, int) else None,
        rope_theta=float(config.get("rope_theta") or 10_000.0),
        tied=bool(config.get("tie_word_embeddings", False)),
    )
    if shape.heads % max(shape.kv_heads, 1):
        raise CampaignError(f"{shape.heads} heads are no multiple of {shape.kv_heads} KV heads", where=where)
    return shape


def named(name: str, where: str) -> DecoderShape:
    """A path of a ``config.json``, or a name of the simulator's catalogue where that is installed."""
    path = Path(name)
    file = path / "config.json" if path.is_dir() else path
    if file.is_file():
        try:
            return from_config(json.loads(file.read_text(encoding="utf-8")), path.stem, where)
        except ValueError as error:
            raise CampaignError(f"{file} is not JSON: {error}", where=where) from None
    try:
        from simulator.core.errors import UserError
        from simulator.model.catalogue import model
    except ImportError:
        raise CampaignError(
            f"no file {name!r}, and the catalogue of models is not installed here",
            where=where,
            remedy="Write the model's shapes into the campaign: a mapping with the fields of its config.json.",
        ) from None
    try:
        return _from_catalogue(model(name))
    except UserError as error:
        raise CampaignError(error.message, where=where, remedy=error.remedy) from None


def _from_catalogue(found: Any) -> DecoderShape:
    """The commonest layer stands for all: suites time layers, and multiply nothing."""
    layer = found.layers[len(found.layers) // 2]
    attention = layer.attention
    if not hasattr(attention, "head_dim"):
        raise CampaignError(
            f"{found.name}: only ordinary (GQA) attention is measured here",
            remedy="List its matrix shapes under suites.gemm.shapes.",
        )
    inter = layer.moe.intermediate_size if layer.moe else layer.mlp.intermediate_size
    experts, top_k = (layer.moe.num_experts, layer.moe.top_k) if layer.moe else (0, 0)
    return DecoderShape(
        found.name.rsplit("/", 1)[-1], found.hidden_size, found.num_layers, attention.num_heads, attention.num_kv_heads,
        attention.head_dim, inter, found.vocab_size, experts, top_k, attention.sliding_window,
        tied=found.tie_word_embeddings,
    )  # fmt: skip
