"""A minimal decoder with random weights and a paged KV cache: what the step suite times and the engine serves.

Pre-norm blocks of RMSNorm, fused QKV, rotary GQA attention and SwiGLU (or a mixture of experts). No training, no
sampling beyond arg max; plain tensors, so that a step can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812

from profiler.measure import kernels
from profiler.measure.models import DecoderShape

Tensor = Any
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(queries (T, H, D), key cache, value cache of the layer) -> (T, H, D)."""


@dataclass(slots=True)
class LayerWeights:
    norm_in: Tensor
    qkv: Tensor
    out: Tensor
    norm_mlp: Tensor
    gate_up: Tensor  # (2 inter, hidden), or (E, 2 inter, hidden)
    down: Tensor  # (hidden, inter), or (E, hidden, inter)
    router: Tensor | None


class Decoder:
    """Weights and KV cache on one device. ``num_slots``: tokens the cache holds."""

    def __init__(
        self, shape: DecoderShape, device: Any, dtype: Any, *, num_slots: int, layers: int | None = None,
        max_positions: int = 16_384, seed: int = 0,
    ) -> None:  # fmt: skip
        self.shape, self.device, self.dtype = shape, torch.device(device), dtype
        self.num_layers = layers or shape.layers
        self._generator = torch.Generator(device=self.device).manual_seed(seed)
        hidden = shape.hidden
        self.embedding = self._weight(shape.vocab, hidden, fan=hidden)
        self.layers = [self._layer() for _ in range(self.num_layers)]
        self.norm = self._ones(hidden)
        self.head = self.embedding if shape.tied else self._weight(shape.vocab, hidden, fan=hidden)
        size = (num_slots, shape.kv_heads, shape.head_dim)
        self.keys = [torch.zeros(size, device=self.device, dtype=dtype) for _ in self.layers]
        self.values = [torch.zeros(size, device=self.device, dtype=dtype) for _ in self.layers]
        self.cos, self.sin = kernels.rope_tables(
            max_positions, shape.head_dim, shape.rope_theta, self.device, self.dtype
        )
        self.grouped = shape.experts > 0 and self._has_grouped()

    def _weight(self, *size: int, fan: int) -> Tensor:
        w = torch.randn(size, device=self.device, dtype=self.dtype, generator=self._generator)
        return w.mul_(fan**-0.5)

    def _ones(self, size: int) -> Tensor:
        return torch.ones(size, device=self.device, dtype=self.dtype)

    def _layer(self) -> LayerWeights:
        s = self.shape
        stack = (s.experts,) if s.experts else ()
        return LayerWeights(
            norm_in=self._ones(s.hidden),
            qkv=self._weight(s.qkv, s.hidden, fan=s.hidden),
            out=self._weight(s.hidden, s.heads * s.head_dim, fan=s.heads * s.head_dim),
            norm_mlp=self._ones(s.hidden),
            gate_up=self._weight(*stack, 2 * s.inter, s.hidden, fan=s.hidden),
            down=self._weight(*stack, s.hidden, s.inter, fan=s.inter),
            router=self._weight(s.experts, s.hidden, fan=s.hidden) if s.experts else None,
        )

    def _has_grouped(self) -> bool:
        """Whether the grouped kernel takes these shapes on this device."""
        layer, x = self.layers[0], torch.zeros(4, self.shape.hidden, device=self.device, dtype=self.dtype)
        try:
            kernels.moe(x, layer.router, layer.gate_up, layer.down, self.shape.top_k, grouped=True)
        except Exception:  # noqa: BLE001 - whatever it dislikes, the loop works
            return False
        return True

    def block(self, index: int, x: Tensor, cos: Tensor, sin: Tensor, slots: Tensor, attend: Attend) -> Tensor:
        """One layer: ``x (T, hidden)``; ``slots (T,)`` where the new keys and values go."""
        s, w = self.shape, self.layers[index]
        qkv = F.linear(kernels.rms_norm(x, w.norm_in), w.qkv).view(-1, s.heads + 2 * s.kv_heads, s.head_dim)
        rotated = kernels.rope(qkv[:, : s.heads + s.kv_heads], cos, sin)
        q, k, v = rotated[:, : s.heads], rotated[:, s.heads :], qkv[:, s.heads + s.kv_heads :]
        self.keys[index].index_copy_(0, slots, k)
        self.values[index].index_copy_(0, slots, v)
        attention = attend(q, self.keys[index], self.values[index])
        x = x + F.linear(attention.reshape(x.shape[0], -1), w.out)
        y = kernels.rms_norm(x, w.norm_mlp)
        if w.router is None:
            return x + F.linear(kernels.silu_mul(F.linear(y, w.gate_up)), w.down)
        return x + kernels.moe(y, w.router, w.gate_up, w.down, s.top_k, grouped=self.grouped)

    def hidden_states(self, tokens: Tensor, positions: Tensor, slots: Tensor, attend: Attend) -> Tensor:
        x = self.embedding[tokens]
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        for index in range(self.num_layers):
            x = self.block(index, x, cos, sin, slots, attend)
        return x

    def forward(self, tokens: Tensor, positions: Tensor, slots: Tensor, attend: Attend, sampled: Tensor) -> Tensor:
        """Next tokens ``(S,)`` of the rows ``sampled (S,)``; all other inputs are ``(T,)``."""
        x = self.hidden_states(tokens, positions, slots, attend)[sampled]
        return self.logits(x).argmax(-1)

    def logits(self, x: Tensor) -> Tensor:
        return F.linear(kernels.rms_norm(x, self.norm), self.head)
