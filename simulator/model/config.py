"""Hugging Face ``config.json`` to ``Model``.

The three spellings of each fact (Llama-like, GPT-2-like, OPT) are looked up in order; anything whose layers are not
understood is refused by name rather than priced as something else.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simulator.core.errors import ModelError
from simulator.model.architecture import (
    AnyAttention,
    Attention,
    LatentAttention,
    Layer,
    LinearAttention,
    Mlp,
    Model,
    Moe,
)
from simulator.model.formats import Quantization

Config = Mapping[str, Any]

# Two matrices in the MLP instead of three.
UNGATED = {"opt", "gpt2", "gpt_bigcode", "gpt_neox", "gptj", "falcon", "bloom", "starcoder2", "phi", "mpt", "nemotron"}
LAYER_NORM = {"opt", "gpt2", "gpt_bigcode", "gpt_neox", "gptj", "falcon", "bloom", "starcoder2", "phi", "mpt"}
ALL_BIASED = {"opt", "gpt2", "gpt_bigcode", "gpt_neox", "bloom", "phi", "starcoder2"}
QKV_BIASED = {"qwen2", "qwen2_moe", "qwen2_vl", "qwen2_5_vl"}
QK_NORMED = {"qwen3", "qwen3_moe", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_next", "gemma3", "gemma3_text",
             "gemma4_text", "minimax_m2", "olmo2"}  # fmt: skip
OUTPUT_GATED = {"qwen3_5_moe_text", "qwen3_5_text", "qwen3_next"}
FOUR_NORMS = {"gemma2", "gemma3", "gemma3_text", "gemma4_text"}
TIED_BY_DEFAULT = {"opt", "gpt2", "gpt_bigcode", "bloom", "mpt", "gemma", "gemma2", "gemma3", "gemma3_text",
                   "gemma4_text", "falcon"}  # fmt: skip
UNSUPPORTED = {
    "mamba": "state-space layers", "mamba2": "state-space layers", "jamba": "state-space layers",
    "zamba2": "state-space layers", "falcon_h1": "state-space layers", "nemotron_h": "state-space layers",
    "granitemoehybrid": "state-space layers", "minimax_text_01": "lightning attention", "rwkv": "recurrent layers",
    "t5": "an encoder", "bart": "an encoder", "whisper": "an encoder", "bert": "an encoder",
    "mllama": "cross-attention",
    "deepseek_v32": "sparse attention (an indexer selects keys)", "llama4": "chunked local attention",
    "llama4_text": "chunked local attention", "gemma3n": "per-layer embeddings", "gemma3n_text": "per-layer embeddings",
}  # fmt: skip


class _Facts:
    """Look-ups with the config's name in every complaint."""

    def __init__(self, config: Config, name: str) -> None:
        self.config, self.name = config, name

    def first(self, *keys: str, default: Any = None) -> Any:
        return next((self.config[k] for k in keys if self.config.get(k) is not None), default)

    def integer(self, *keys: str, default: int | None = None) -> int:
        value = self.first(*keys, default=default)
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            problem = "is missing" if value is None else f"is {value!r}"
            raise ModelError(
                f"{self.name}: {keys[0]} {problem}",
                where=f"config.json: {' / '.join(keys)}",
                remedy="Give the config.json of a decoder-only model, as Hugging Face writes it.",
            )
        return value


def load_config(path: Path | str, name: str | None = None) -> Model:
    """Reads a ``config.json`` (or a folder that holds one). Raises ModelError."""
    path = Path(path)
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"cannot read the model config: {error.strerror or error}", where=str(file)) from error
    except ValueError as error:
        raise ModelError(f"not JSON: {error}", where=str(file)) from error
    if not isinstance(config, dict):
        raise ModelError("a model config is a JSON object", where=str(file))
    return from_config(config, name or (path.name if path.is_dir() else file.stem), source=str(file))


def from_config(config: Config, name: str, source: str = "") -> Model:
    """A ``Model`` from the parsed ``config.json``. Raises ModelError naming what is missing or unsupported."""
    outer, config = config, _text_config(config)
    kind = str(config.get("model_type", ""))
    for model_type in (str(outer.get("model_type", "")), kind):
        if model_type in UNSUPPORTED:
            raise ModelError(
                f"{name}: model_type {model_type!r} is not supported: it has {UNSUPPORTED[model_type]}",
                remedy="Supported are decoder-only models with softmax, latent (MLA) or gated-delta attention.",
            )
    facts = _Facts(config, name)
    hidden = facts.integer("hidden_size", "n_embd", "d_model")
    num_layers = facts.integer("num_hidden_layers", "n_layer", "n_layers")
    tied = facts.first("tie_word_embeddings", default=outer.get("tie_word_embeddings"))
    positions = facts.integer("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", default=2048)
    return Model(
        name=name,
        architecture=str((config.get("architectures") or outer.get("architectures") or [kind or "unknown"])[0]),
        hidden_size=hidden,
        vocab_size=facts.integer("vocab_size"),
        max_model_len=positions,
        layers=_layers(facts, kind, hidden, num_layers),
        dtype=_dtype(facts.first("dtype", "torch_dtype", default=outer.get("dtype") or outer.get("torch_dtype"))),
        tie_word_embeddings=bool(tied if tied is not None else kind in TIED_BY_DEFAULT),
        learned_positions={"opt": positions + 2}.get(kind, positions if kind in ("gpt2", "gpt_bigcode") else 0),
        norm_bias=kind in LAYER_NORM,
        lm_head_bias=kind in ("phi", "gptj"),
        quantization=_quantization(outer.get("quantization_config") or config.get("quantization_config"), name),
        source=source,
    )


def _text_config(config: Config) -> Config:
    for key in ("text_config", "llm_config", "language_config"):
        inner = config.get(key)
        if isinstance(inner, Mapping):
            return inner
    return config


def _dtype(value: Any) -> str:
    name = str(value or "bfloat16").removeprefix("torch.")
    return {"float32": "float32", "float16": "float16"}.get(name, "bfloat16")


def _layers(facts: _Facts, kind: str, hidden: int, num_layers: int) -> tuple[Layer, ...]:
    if num_layers < 1:
        raise ModelError(f"{facts.name}: num_hidden_layers is {num_layers}")
    types = _layer_types(facts, kind, num_layers)
    moe, mlp = _moe(facts, kind), _mlp(facts, kind, hidden)
    norms = 4 if kind in FOUR_NORMS else 2
    if kind == "gemma4_text" and moe:
        norms = 7  # a norm before and after each of attention, MLP and experts, and one on their sum
    if kind in ("phi", "gptj", "falcon"):
        norms = 1  # attention and MLP read the same normalised input
    return tuple(
        Layer(
            _attention(facts, kind, hidden, types[i]),
            # Gemma 4 has a dense MLP beside the experts of every layer.
            mlp if kind == "gemma4_text" or not (moe and _is_moe_layer(facts, i)) else None,
            moe if moe and _is_moe_layer(facts, i) else None,
            norms,
        )
        for i in range(num_layers)
    )


def _layer_types(facts: _Facts, kind: str, num_layers: int) -> list[str]:
    """One of full_attention, sliding_attention, linear_attention per layer."""
    known = {"full_attention", "sliding_attention", "linear_attention"}
    types = facts.config.get("layer_types")
    if types:
        if len(types) != num_layers or not set(types) <= known:
            raise ModelError(
                f"{facts.name}: layer_types holds {sorted(set(types) - known) or len(types)}",
                where="config.json: layer_types",
                remedy=f"Give {num_layers} entries, each one of {', '.join(sorted(known))}.",
            )
        return list(types)
    interval = facts.first("full_attention_interval")
    if interval:
        return ["full_attention" if (i + 1) % interval == 0 else "linear_attention" for i in range(num_layers)]
    if facts.first("sliding_window") is None or not facts.first("use_sliding_window", default=True):
        return ["full_attention"] * num_layers
    pattern = facts.first("sliding_window_pattern", default={"gemma2": 2, "gemma3_text": 6, "gemma3": 6}.get(kind))
    if pattern:
        return ["full_attention" if (i + 1) % pattern == 0 else "sliding_attention" for i in range(num_layers)]
    if kind.startswith("qwen"):  # layers below max_window_layers see everything
        full = facts.integer("max_window_layers", default=num_layers)
        return ["full_attention" if i < full else "sliding_attention" for i in range(num_layers)]
    return ["sliding_attention"] * num_layers


def _attention(facts: _Facts, kind: str, hidden: int, layer_type: str) -> AnyAttention:
    if layer_type == "linear_attention":
        return LinearAttention(
            facts.integer("linear_num_key_heads"), facts.integer("linear_num_value_heads"),
            facts.integer("linear_key_head_dim"), facts.integer("linear_value_head_dim"),
            facts.integer("linear_conv_kernel_dim"),
            4 if facts.first("mamba_ssm_dtype", default="float32") == "float32" else 2,
        )  # fmt: skip
    heads = facts.integer("num_attention_heads", "n_head", "n_heads")
    if facts.first("kv_lora_rank"):
        return LatentAttention(
            heads, facts.first("q_lora_rank"), facts.integer("kv_lora_rank"), facts.integer("qk_nope_head_dim"),
            facts.integer("qk_rope_head_dim"), facts.integer("v_head_dim"),
        )  # fmt: skip
    if heads < 1:
        raise ModelError(f"{facts.name}: num_attention_heads is {heads}")
    window = facts.integer("sliding_window") if layer_type == "sliding_attention" else None
    wide = kind == "gemma4_text" and window is None
    biased = bool(facts.first("attention_bias", "use_bias", default=kind in ALL_BIASED or kind == "gpt_oss"))
    return Attention(
        num_heads=heads,
        num_kv_heads=facts.integer("num_global_key_value_heads") if wide else _kv_heads(facts, kind, heads),
        head_dim=facts.integer("global_head_dim") if wide else facts.integer("head_dim", default=hidden // heads),
        sliding_window=window,
        qkv_bias=biased or kind in QKV_BIASED,
        out_bias=biased,
        qk_norm=kind in QK_NORMED,
        sinks=kind == "gpt_oss",
        output_gate=bool(facts.first("attn_output_gate", default=kind in OUTPUT_GATED)),
        key_is_value=wide and bool(facts.first("attention_k_eq_v", default=False)),
    )


def _kv_heads(facts: _Facts, kind: str, heads: int) -> int:
    if kind == "falcon" and not facts.first("new_decoder_architecture", default=False):
        return 1 if facts.first("multi_query", default=True) else heads
    if kind == "gpt_bigcode":
        return 1 if facts.first("multi_query", default=True) else heads
    return facts.integer("num_key_value_heads", "num_kv_heads", default=heads)


def _mlp(facts: _Facts, kind: str, hidden: int) -> Mlp:
    inner = facts.integer("ffn_dim", "intermediate_size", "n_inner", "ffn_hidden_size", default=4 * hidden)
    biased = bool(facts.first("mlp_bias", "use_bias", default=kind in ALL_BIASED or kind == "gptj"))
    return Mlp(inner, gated=kind not in UNGATED, bias=biased)


def _moe(facts: _Facts, kind: str) -> Moe | None:
    experts = facts.first("num_local_experts", "num_experts", "n_routed_experts", default=0)
    if not experts:
        return None
    inner = facts.integer("moe_intermediate_size", "intermediate_size")
    shared = facts.first("shared_expert_intermediate_size", "shared_intermediate_size")
    if shared is None:
        shared = facts.first("n_shared_experts", "num_shared_experts", default=0) * inner
    return Moe(
        num_experts=experts,
        top_k=facts.integer("num_experts_per_tok", "experts_per_token", "top_k_experts", "moe_topk"),
        intermediate_size=inner,
        shared_intermediate_size=shared,
        bias=kind == "gpt_oss",
        routing_bias=bool(facts.first("use_routing_bias", default=facts.first("topk_method") == "noaux_tc")),
        shared_gate=kind in ("qwen2_moe", "qwen3_5_moe_text", "qwen3_next"),
    )


def _is_moe_layer(facts: _Facts, index: int) -> bool:
    if index in (facts.first("mlp_only_layers") or ()) or index < facts.first("first_k_dense_replace", default=0):
        return False
    every = facts.first("decoder_sparse_step", "moe_layer_freq", "interleave_moe_layer_step", default=1)
    if not isinstance(every, int) or every < 1:
        raise ModelError(f"{facts.name}: experts every {every!r} layers is not supported", where="config.json")
    return (index + 1) % every == 0 if "decoder_sparse_step" in facts.config else index % every == 0


def _quantization(config: Any, name: str) -> Quantization | None:
    """As published in ``quantization_config``."""
    if not isinstance(config, Mapping):
        return None
    method = str(config.get("quant_method", ""))
    if method == "mxfp4":
        return Quantization("mxfp4", "experts")
    if method in ("fp8", "fbgemm_fp8"):
        return Quantization("fp8_block" if config.get("weight_block_size") else "fp8")
    if method in ("awq", "gptq", "awq_marlin", "gptq_marlin"):
        return _bits(int(config.get("bits") or config.get("w_bit") or 4), int(config.get("group_size") or 128), name)
    if method == "modelopt":
        algorithm = str(config.get("quant_algo", "")).upper()
        return Quantization("nvfp4" if "FP4" in algorithm else "fp8")
    if method == "compressed-tensors":
        return _compressed_tensors(config, name)
    raise ModelError(
        f"{name}: quant_method {method!r} is not supported",
        where="config.json: quantization_config",
        remedy="Supported are fp8, mxfp4, awq, gptq, modelopt and compressed-tensors.",
    )


def _compressed_tensors(config: Config, name: str) -> Quantization:
    groups: Config = config.get("config_groups") or {}
    weights: Config = next((group.get("weights") or {} for group in groups.values()), {})
    bits, group = int(weights.get("num_bits") or 8), int(weights.get("group_size") or 0)
    ignored = " ".join(map(str, config.get("ignore") or ()))
    scope: Any = "experts" if "self_attn" in ignored else "linear"
    if weights.get("type") == "float":
        return Quantization("nvfp4" if bits == 4 else "fp8", scope)
    return Quantization(_bits(bits, group or 128, name).format, scope)


def _bits(bits: int, group: int, name: str) -> Quantization:
    if bits == 8:
        return Quantization("int8")
    if bits == 4:
        return Quantization("int4_g32" if group == 32 else "int4")
    raise ModelError(f"{name}: {bits}-bit integer weights are not supported", remedy="Supported are 4 and 8 bits.")
