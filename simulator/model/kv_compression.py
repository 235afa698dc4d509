"""Methods that make the KV cache smaller: fewer bits, fewer tokens, fewer layers, or fewer of them read.

One frozen record holds what decides time and memory. What a method costs in quality is no result of a simulation: it is
an input, stated with each preset.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from simulator.core.errors import ModelError
from simulator.core.names import suggestion

SCALE_BYTES = 4.0  # a 16-bit scale and a 16-bit zero point per group
WIDE_BYTES = 2.0  # bytes per element of what is kept as the model made it


@dataclass(frozen=True, slots=True)
class KvCompression:
    """How the KV cache of softmax attention differs from the model's own.

    bits: of an element; None: as ``kv_cache_dtype`` says. group_size: elements that share a scale and a zero point of
    16 bits each; 0: none do. extra: bytes stored beside, as a share of the cache in 16 bits (outliers, low-rank parts).
    residual_tokens: newest tokens of a request that stay in 16 bits.
    keep: share of its context that a request keeps. keep_tokens: most tokens that it keeps and that a query sees.
    read: share of what is kept that a decode reads. index: bytes beside, as a share of the cache in 16 bits, that it
    reads in full to find out which; it stays in the GPU's memory. stored_layers: share of layers with KV of their own.
    dequant_ops: instructions of the ordinary cores per element that a decode reads.
    kernels: launches per layer and step beside attention; one that runs every k steps counts as 1/k.
    rewrite: share of the cache that every step copies; engines that grow it by joining tensors copy all of it.
    """

    bits: float | None = None
    group_size: int = 0
    extra: float = 0.0
    residual_tokens: int = 0
    keep: float = 1.0
    keep_tokens: int | None = None
    read: float = 1.0
    index: float = 0.0
    stored_layers: float = 1.0
    dequant_ops: float = 0.0
    kernels: float = 0.0
    rewrite: float = 0.0
    quality: str = ""
    source: str = ""

    @property
    def drops_tokens(self) -> bool:
        """What is kept depends on the request, so that no two can share it."""
        return self.keep < 1.0 or self.keep_tokens is not None

    def element_bytes(self, otherwise: float) -> float:
        """Bytes per element stored. ``otherwise``: those of ``kv_cache_dtype``."""
        if self.bits is None:
            return otherwise + WIDE_BYTES * self.extra
        scales = SCALE_BYTES / self.group_size if self.group_size else 0.0
        return self.bits / 8.0 + scales + WIDE_BYTES * self.extra

    def stored_bytes(self, element_bytes: float) -> float:
        """Bytes per element of a context, in the GPU's memory, all told: what is kept in which layers."""
        return (self.element_bytes(element_bytes) + WIDE_BYTES * self.index) * self.keep * self.stored_layers

    def residual_keys(self, element_bytes: float) -> float:
        """The residual tokens' width above the others', as so many more tokens of theirs; per request."""
        return self.residual_tokens * max(WIDE_BYTES / element_bytes - 1.0, 0.0)


# Parameters as the papers state them. dequant_ops: shift, mask, convert, multiply-add (an estimate for all of them).
PRESETS: Mapping[str, KvCompression] = {
    "kivi-2bit": KvCompression(
        bits=2, group_size=32, residual_tokens=128, dequant_ops=4, kernels=2,
        quality="accuracy falls by up to 2 % of the tasks' scores",
        source="Liu et al., KIVI, ICML 2024 (arXiv:2402.02750): groups of 32, residual of 128 tokens",
    ),
    "kivi-4bit": KvCompression(
        bits=4, group_size=32, residual_tokens=128, dequant_ops=4, kernels=2,
        quality="as 16 bits", source="Liu et al., KIVI, ICML 2024 (arXiv:2402.02750)",
    ),
    # Low rank 4 over heads of 128: 4/128. Outliers: 2 % of the elements, a 16-bit value and a 16-bit index each.
    # Every 20 tokens the buffer is compressed: about 20 kernels (quantise, top-k, a power iteration of two rounds).
    "gear-2bit": KvCompression(
        bits=2, group_size=64, extra=0.03125 + 0.04, residual_tokens=20, dequant_ops=4, kernels=5 + 20 / 20,
        quality="14.95 % better than other 2-bit methods on average, near 16 bits",
        source="Kang et al., GEAR (arXiv:2403.05527): rank 4, 2 % outliers, buffer of 20 tokens",
    ),
    "gear-4bit": KvCompression(
        bits=4, group_size=64, extra=0.03125 + 0.04, residual_tokens=20, dequant_ops=4, kernels=5 + 20 / 20,
        quality="as 16 bits", source="Kang et al., GEAR (arXiv:2403.05527)",
    ),
    # From the middle layer on, pairs of layers share their directions; norms (1/128 of the elements each) and the most
    # distinct tokens (5 %) stay apart.
    "minicache": KvCompression(
        stored_layers=0.75 + 0.25 * (1 / 128 + 0.05), kernels=0.5 * 3,
        quality="near 16 bits", source="Liu et al., MiniCache, NeurIPS 2024 (arXiv:2405.14366)",
    ),
    "minicache-4bit": KvCompression(
        bits=4, group_size=128, stored_layers=0.75 + 0.25 * (1 / 128 + 0.05), dequant_ops=4, kernels=2 + 0.5 * 3,
        quality="near 16 bits", source="Liu et al., MiniCache, NeurIPS 2024 (arXiv:2405.14366): 5.02x with 4 bits",
    ),
    # Scores of the kept tokens are summed, the least one of them gives way: sum, minimum, write.
    "h2o": KvCompression(
        keep=0.2, kernels=3, quality="within 1 % of the whole cache at 20 %",
        source="Zhang et al., H2O, NeurIPS 2023 (arXiv:2306.14048): 20 % heavy hitters and recent tokens",
    ),
    "streaming-llm": KvCompression(
        keep_tokens=4 + 2044, kernels=1, quality="perplexity as within the window; what left it is forgotten",
        source="Xiao et al., StreamingLLM, ICLR 2024 (arXiv:2309.17453): 4 sinks and a window",
    ),
    "keyformer": KvCompression(
        keep=0.5, kernels=3, quality="within 1 % of the whole cache at 50 %",
        source="Adnan et al., Keyformer, MLSys 2024 (arXiv:2403.09054)",
    ),
    # 4-bit quantisation of FlexGen: groups of 64, decompressed before use.
    "flexgen-4bit": KvCompression(
        bits=4, group_size=64, dequant_ops=4, kernels=2, quality="as 16 bits",
        source="Sheng et al., FlexGen, ICML 2023 (arXiv:2303.06865), section 5",
    ),
    # Part of the keys (30 % of their columns: 15 % of the KV) stays on the GPU to predict what the next layer needs.
    "infinigen": KvCompression(
        read=0.1, index=0.15, kernels=4, quality="as the whole cache",
        source="Lee et al., InfiniGen, OSDI 2024 (arXiv:2406.19707): under 10 % of the tokens are fetched on average",
    ),
}  # fmt: skip


def kv_preset(name: str) -> KvCompression:
    """Raises ModelError on an unknown name."""
    found = PRESETS.get(name)
    if found is None:
        remedy = suggestion(name, PRESETS, noun="presets")
        raise ModelError(f"unknown KV compression {name!r}", where="kv_compression", remedy=remedy)
    return found


def extra_blocks(kv: KvCompression, element_bytes: float, block_size: int) -> int:
    """KV blocks that a request holds for its residual tokens beside those of its context."""
    stored = kv.element_bytes(element_bytes)
    return math.ceil(kv.residual_keys(stored) / (kv.keep * kv.stored_layers * block_size))
