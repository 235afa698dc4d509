"""What a model is, as far as time and memory go: frozen facts, one ``Layer`` per layer."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.model.formats import Quantization
from simulator.model.kv_compression import KvCompression


@dataclass(frozen=True, slots=True)
class Attention:
    """Softmax attention: MHA, GQA (``num_kv_heads < num_heads``) or MQA (``num_kv_heads == 1``)."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    sliding_window: int | None = None  # tokens; None: every query sees its whole context
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False  # RMSNorm over each query and key head
    sinks: bool = False  # one learned logit per head (gpt-oss)
    output_gate: bool = False  # the query projection also makes a gate of its own size (Qwen3.5)
    key_is_value: bool = False  # no value projection, K is reused (Gemma 4); the cache still holds both
    kv: KvCompression | None = None  # how its cache is made smaller than the model's own


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434): the cache holds one latent vector a token."""

    num_heads: int
    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    sliding_window: None = None

    @property
    def latent_dim(self) -> int:
        """Elements cached per token and layer."""
        return self.kv_lora_rank + self.qk_rope_head_dim


@dataclass(frozen=True, slots=True)
class LinearAttention:
    """Gated delta rule (arXiv:2412.06464): a state of fixed size per sequence instead of a growing cache."""

    num_key_heads: int
    num_value_heads: int
    key_head_dim: int
    value_head_dim: int
    conv_kernel: int
    state_bytes: int = 4  # bytes per element of the recurrent state (``mamba_ssm_dtype``)
    sliding_window: None = None

    @property
    def conv_channels(self) -> int:
        return 2 * self.num_key_heads * self.key_head_dim + self.num_value_heads * self.value_head_dim

    @property
    def state_elements(self) -> int:
        return self.num_value_heads * self.key_head_dim * self.value_head_dim


@dataclass(frozen=True, slots=True)
class Mlp:
    intermediate_size: int
    gated: bool = True  # SwiGLU-like: gate, up and down; otherwise up and down
    bias: bool = False


@dataclass(frozen=True, slots=True)
class Moe:
    """Routed experts plus (optionally) shared ones that every token visits."""

    num_experts: int
    top_k: int
    intermediate_size: int  # of one routed expert
    shared_intermediate_size: int = 0  # of all shared experts together; 0: none
    gated: bool = True
    bias: bool = False  # biases on router and experts (gpt-oss)
    routing_bias: bool = False  # per-expert correction of the router's scores (DeepSeek-V3, MiniMax-M2)
    shared_gate: bool = False  # a learned scalar gate on the shared expert (Qwen)


AnyAttention = Attention | LatentAttention | LinearAttention


@dataclass(frozen=True, slots=True)
class Layer:
    attention: AnyAttention
    mlp: Mlp | None = None
    moe: Moe | None = None
    num_norms: int = 2  # hidden-wide norms


@dataclass(frozen=True, slots=True)
class Model:
    """One decoder-only transformer. ``max_model_len`` in tokens; ``dtype`` is that of unquantised weights."""

    name: str
    architecture: str  # Hugging Face class
    hidden_size: int
    vocab_size: int
    max_model_len: int
    layers: tuple[Layer, ...]
    dtype: str = "bfloat16"
    tie_word_embeddings: bool = False
    learned_positions: int = 0  # rows of a learned position table (OPT, GPT-2)
    norm_bias: bool = False  # LayerNorm (weight and bias) instead of RMSNorm (weight)
    lm_head_bias: bool = False
    quantization: Quantization | None = None  # as published; None: every weight in ``dtype``
    source: str = ""

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def sliding_window(self) -> int | None:
        """Window of the sliding-window layers (tokens), None when there are none."""
        windows = {layer.attention.sliding_window for layer in self.layers} - {None}
        return windows.pop() if windows else None

    @property
    def is_moe(self) -> bool:
        return any(layer.moe is not None for layer in self.layers)
