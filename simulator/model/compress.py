"""A model whose KV cache is made smaller."""

from __future__ import annotations

from dataclasses import replace

from simulator.core.errors import ModelError
from simulator.model.architecture import Attention, Model
from simulator.model.kv_compression import KvCompression

STREAM_TOKENS = 4_000_000


def compressed(model: Model, kv: KvCompression) -> Model:
    """The model with its KV cache made smaller. Raises ModelError where that means nothing."""
    layers = []
    for layer in model.layers:
        a = layer.attention
        if not isinstance(a, Attention):
            raise ModelError(
                f"{model.name} has layers without keys and values per head",
                where="kv_compression",
                remedy="Leave kv_compression out: it is of softmax attention.",
            )
        if kv.keep_tokens is not None and a.sliding_window is not None:
            raise ModelError(
                f"{model.name} has a sliding window of {a.sliding_window} tokens already",
                where="kv_compression",
                remedy="Leave keep_tokens out.",
            )
        window = a.sliding_window if kv.keep_tokens is None else kv.keep_tokens
        layers.append(replace(layer, attention=replace(a, kv=kv, sliding_window=window)))
    # Positions are counted within what is kept, so that a stream has no end; the paper's longest had 4 million tokens.
    longest = model.max_model_len if kv.keep_tokens is None else max(model.max_model_len, STREAM_TOKENS)
    return replace(model, layers=tuple(layers), max_model_len=longest)
