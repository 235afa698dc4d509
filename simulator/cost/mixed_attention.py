"""Decodes in one attention kernel with prompt chunks: FlashAttention-2 reads their keys again for every query head.

Alone, a decode's query heads that share a KV head are packed into one tile, and its keys are read once. In a batch
with a chunk, FlashAttention-2 gives each query head a tile of its own: keys are read ``heads / kv_heads`` times, and
the L2 cache absorbs the repetition while it can. From 18,960 mixed batches of Llama-3.1-8B on an RTX PRO 6000
(LLMServingSim 5daddb2, MIT), the repeated reads that miss it are ``x / (x + 1.5 GB)`` of them, for x bytes of keys and
values per layer: decodes cost 1.4 times as much at 65,000 tokens, twice at 260,000, three times at 520,000.
FlashAttention-3 (Hopper) packs heads in mixed batches too, and FlashInfer (Blackwell data centre) runs two kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from simulator.cost.shapes import AttentionShape
from simulator.hardware.gpu import Gpu

HALF_MISS_BYTES = 1.5e9


def fuses(gpu: Gpu) -> bool:
    """Whether vLLM's default attention there is FlashAttention-2: NVIDIA GPUs of capability 8.x and 12.x.

    Measured on one GPU, assumed for its relatives.
    """
    return gpu.vendor == "NVIDIA" and int(gpu.compute_capability) in (8, 12)


def reread(gpu: Gpu, shapes: Sequence[AttentionShape]) -> Callable[[int], float] | None:
    """Factor on the attention of a mixed step's decodes by their context sum; None: always 1."""
    softmax = [s for s in shapes if s.kind == "softmax"]
    if not fuses(gpu) or not softmax:
        return None
    widest = max(softmax, key=lambda s: s.bytes_per_context)
    more, half = widest.heads / widest.kv_heads - 1.0, HALF_MISS_BYTES / widest.bytes_per_context
    return (lambda context: 1.0 + more * context / (context + half)) if more > 0.0 else None
