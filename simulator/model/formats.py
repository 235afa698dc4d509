"""Number formats: bytes per element, group scales included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from simulator.core.errors import ModelError
from simulator.core.names import suggestion

Scope = Literal["linear", "experts"]


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """How a weight matrix is stored.

    ``group_size`` weights share ``group_bytes`` of scales and zero points; group 0 means one group per output row.
    ``math``: the narrowest format the product can run in when the GPU has units for it.
    """

    name: str
    bits: int
    group_size: int
    group_bytes: float
    math: str

    def bytes_per_weight(self, in_features: int) -> float:
        group = self.group_size or in_features
        return self.bits / 8 + self.group_bytes / group


# Scales as the formats define them: fp8 and int8 per output channel (fp32); int4 as AWQ/GPTQ write it (group of 128,
# fp16 scale and 4-bit zero point); OCP Microscaling MXFP4 (32 weights, one 8-bit exponent); NVFP4 (16 weights, one fp8
# scale). Weight-only formats (int4) multiply in 16 bits after dequantising; MXFP4 weights meet fp8 activations on GPUs
# with fp4 tensor cores; NVFP4 multiplies in fp4. sparse24: two of four 16-bit weights are kept, with two bits each to
# say which (9 bits per weight); products run at the dense rate, which the sparse tensor cores can beat up to twice.
WEIGHT_FORMATS = {
    "float32": WeightFormat("float32", 32, 0, 0.0, "fp32"),
    "bfloat16": WeightFormat("bfloat16", 16, 0, 0.0, "bf16"),
    "float16": WeightFormat("float16", 16, 0, 0.0, "fp16"),
    "fp8": WeightFormat("fp8", 8, 0, 4.0, "fp8"),
    "fp8_block": WeightFormat("fp8_block", 8, 128 * 128, 4.0, "fp8"),
    "int8": WeightFormat("int8", 8, 0, 4.0, "int8"),
    "int4": WeightFormat("int4", 4, 128, 2.5, "bf16"),
    "int4_g32": WeightFormat("int4_g32", 4, 32, 2.0, "bf16"),
    "mxfp4": WeightFormat("mxfp4", 4, 32, 1.0, "mxfp4"),
    "mxfp4_marlin": WeightFormat("mxfp4_marlin", 4, 32, 1.0, "bf16"),  # dequantised by Marlin kernels, on any GPU
    "nvfp4": WeightFormat("nvfp4", 4, 16, 1.0, "fp4"),
    "sparse24": WeightFormat("sparse24", 9, 0, 0.0, "bf16"),
}
ALIASES = {"bf16": "bfloat16", "fp16": "float16", "half": "float16", "fp32": "float32", "float": "float32",
           "awq": "int4", "gptq": "int4", "fp4": "nvfp4", "modelopt_fp4": "nvfp4", "modelopt": "fp8"}  # fmt: skip

# Bytes per cached element and bytes per (token, head) of scales: int8 and int4 are vLLM's per-token-head modes.
KV_FORMATS = {
    "float32": (4.0, 0.0),
    "bfloat16": (2.0, 0.0),
    "float16": (2.0, 0.0),
    "fp8": (1.0, 0.0),
    "int8": (1.0, 4.0),
    "int4": (0.5, 4.0),
}
KV_ALIASES = {"fp8_e4m3": "fp8", "fp8_e5m2": "fp8", "int8_per_token_head": "int8", "int4_per_token_head": "int4"}


@dataclass(frozen=True, slots=True)
class Quantization:
    """``format`` of the weights in ``scope``: every linear layer, or the routed experts alone (gpt-oss, Kimi-K2.5).

    Embeddings, lm_head, routers, norms and biases stay in the model's dtype, as engines keep them.
    """

    format: str
    scope: Scope = "linear"


def weight_format(name: str) -> WeightFormat:
    """Raises ModelError on an unknown name."""
    found = WEIGHT_FORMATS.get(ALIASES.get(name, name))
    if found is None:
        remedy = suggestion(name, WEIGHT_FORMATS, noun="weight formats")
        raise ModelError(f"unknown weight format {name!r}", remedy=remedy)
    return found


def kv_element_bytes(name: str) -> tuple[float, float]:
    """(bytes per element, bytes of scales per token and head). Raises ModelError on an unknown name."""
    name = ALIASES.get(name, name)
    found = KV_FORMATS.get(KV_ALIASES.get(name, name))
    if found is None:
        remedy = suggestion(name, ("auto", *KV_FORMATS), noun="types")
        raise ModelError(f"unknown kv_cache_dtype {name!r}", remedy=remedy)
    return found
