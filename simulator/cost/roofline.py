"""Operators priced by the roofline: ``launch + max(FLOPs / (peak x e_c), bytes / (bandwidth x e_m))``.

(Williams, Waterman, Patterson: Roofline, doi:10.1145/1498765.1498785.) The efficiencies are constants per operator
class; see ``EFFICIENCY`` for where each comes from. Launch and work add rather than overlap: a kernel in a CUDA graph
starts after its predecessor has drained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from simulator.cost.operators import Bound, ChunkSeconds, Curve, Price
from simulator.cost.overhead import EngineOverhead
from simulator.cost.placement import Deployment
from simulator.cost.shapes import AttentionShape
from simulator.cost.step import OperatorCost
from simulator.hardware.gpu import Gpu, Link
from simulator.model.architecture import Model
from simulator.model.formats import WeightFormat


@dataclass(frozen=True, slots=True)
class Efficiency:
    """Shares of peak FLOP/s and of memory (or link) bandwidth that a kernel class reaches, and its fixed seconds."""

    compute: float
    memory: float
    launch_s: float


# Medians of measured kernels of vLLM 0.24 on an H100 SXM (NVIDIA aiconfigurator 095f58a, Apache-2.0), rounded:
#   gemm         bf16, m n k >= 2048: 0.79 of peak; m <= 16, weights > 40 MB: 0.80 of bandwidth; small ones 2.5-3 us
#   gemm_fp8     activations quantised on the way: 0.45-0.51 and 0.70; small ones 5 us
#   experts      bf16 Triton fused MoE, balanced routing: 0.37 and 0.61; small ones 31 us (routing, sorting, two GEMMs)
#   prefill      FlashAttention-3, head_dim 128: 0.35 at 1-2k tokens, 0.56 at 4-8k, 0.61 beyond
#   decode       0.75 of bandwidth for reads of 100 MB, 0.90 for 1 GB; 10-12 us for the smallest, launch included
#   all_reduce   custom all-reduce inside a CUDA graph: 0.50 (2 GPUs), 0.68 (4), 0.76 (8) of NVLink for large messages
# elementwise is an assumption: fused kernels stream at 0.70 of bandwidth, and 1.5 us each.
EFFICIENCY: Mapping[str, Efficiency] = {
    "gemm": Efficiency(0.75, 0.80, 2.5e-6),
    "gemm_fp8": Efficiency(0.50, 0.72, 4.5e-6),
    "experts": Efficiency(0.37, 0.60, 28e-6),
    "prefill": Efficiency(0.55, 0.75, 8e-6),
    "decode": Efficiency(0.55, 0.85, 8e-6),
    "elementwise": Efficiency(1.0, 0.70, 1.5e-6),
    "network": Efficiency(1.0, 0.65, 0.0),
}


class Roofline:
    """``Operators`` of a GPU by its data sheet."""

    def __init__(self, gpu: Gpu, efficiency: Mapping[str, Efficiency] = EFFICIENCY) -> None:
        self.gpu = gpu
        self._efficiency = efficiency

    def _price(self, kind: str, flops: float, size: float, math: str) -> Price:
        e = self._efficiency[kind]
        compute = flops / (self.gpu.peak(math)[1] * e.compute)
        memory = size / (self.gpu.memory_bandwidth * e.memory)
        work = max(compute, memory)
        bound: Bound = "latency" if e.launch_s > work else "compute" if compute >= memory else "memory"
        return Price(e.launch_s + work, flops, size, bound)

    def gemm(self, m: int, n: int, k: int, fmt: WeightFormat, activation_bytes: float) -> Price:
        """FLOPs 2mnk; bytes of the weight once, of input and output."""
        number = self.gpu.peak(fmt.math)[0]
        narrow = number in ("fp8", "int8", "fp4")
        size = n * k * fmt.bytes_per_weight(k) + m * (k + n) * activation_bytes
        if narrow:  # the input is read wide, written narrow and read again
            size += m * k * 2.0
        return self._price("gemm_fp8" if narrow else "gemm", 2.0 * m * n * k, size, fmt.math)

    def experts(  # noqa: PLR0917 - the shape of the operator
        self, tokens: int, visits: float, num_experts: int, shapes: Sequence[tuple[int, int]], fmt: WeightFormat,
        activation_bytes: float, all_visits: float | None = None,
    ) -> Price:  # fmt: skip
        """Uniform routing touches ``E (1 - (1 - visits/E)^tokens)`` experts on average; each is read once."""
        touched = num_experts * -_expm1_log1p(min(visits / num_experts, 1.0), tokens)
        flops = size = 0.0
        for n, k in shapes:
            flops += 2.0 * tokens * visits * n * k
            size += touched * n * k * fmt.bytes_per_weight(k) + tokens * visits * (n + k) * activation_bytes
        return self._price("experts", flops, size, fmt.math)

    def elementwise(self, size_bytes: float, kernels: int) -> Price:
        e = self._efficiency["elementwise"]
        launch, work = e.launch_s * kernels, size_bytes / (self.gpu.memory_bandwidth * e.memory)
        return Price(launch + work, 0.0, size_bytes, "latency" if launch > work else "memory")

    def all_reduce(self, size_bytes: float, size: int) -> Price:
        """Alpha-beta: every rank sends and receives ``2 (n-1)/n`` of the buffer (Thakur et al.,
        doi:10.1177/1094342005051521), which no algorithm undercuts.
        """
        return self._network(2.0 * (size - 1) / size * size_bytes, self.gpu.group_link(size), size)

    def all_gather(self, size_bytes: float, size: int) -> Price:
        return self._network((size - 1) / size * size_bytes, self.gpu.group_link(size), size)

    def send(self, size_bytes: float, link: Link) -> Price:
        return self._network(size_bytes, link, 2)

    def _network(self, sent: float, link: Link, size: int) -> Price:
        # Over PCIe a ring takes a hop per rank; switched links reach every peer at once.
        hops = size - 1 if link.kind == "pcie" else 1
        seconds = link.latency_s * hops + sent / (link.bandwidth * self._efficiency["network"].memory)
        return Price(seconds, 0.0, sent, "network")

    def decode_attention(self, shape: AttentionShape, num_decodes: int) -> Curve:
        """Keys stream past their queries, and both FLOPs and bytes grow with the context alone: one straight line."""
        e = self._efficiency["decode"]
        peak, bandwidth = self.gpu.peak("bf16")[1] * e.compute, self.gpu.memory_bandwidth * e.memory
        slope = max(shape.flops_per_context / peak, shape.bytes_per_context / bandwidth)
        flops = num_decodes * shape.flops_per_sequence
        size = num_decodes * shape.bytes_per_sequence + shape.weight_bytes
        return Curve((e.launch_s + max(flops / peak, size / bandwidth),), (slope,))

    def prefill_launch(self, shape: AttentionShape) -> float:
        del shape
        return self._efficiency["prefill"].launch_s

    def prefill_attention(self, shape: AttentionShape) -> ChunkSeconds:
        """Constants folded for the hot path; ``prefill_physics`` is the readable form, and a test holds them equal."""
        e = self._efficiency["prefill"]
        peak, bandwidth = self.gpu.peak("bf16")[1] * e.compute, self.gpu.memory_bandwidth * e.memory
        pair, span_c, new_c = shape.flops_per_pair / peak, shape.flops_per_span / peak, shape.flops_per_new / peak
        span_m, new_m = shape.bytes_per_context / bandwidth, shape.bytes_per_new / bandwidth
        chunk_m = shape.bytes_per_chunk / bandwidth
        return (
            _full(pair, span_c, new_c, span_m, new_m, chunk_m)
            if shape.window is None
            else _windowed(pair, span_c, new_c, span_m, new_m, chunk_m, shape.window)
        )


def _expm1_log1p(share: float, tokens: int) -> float:
    """``(1 - share)^tokens - 1`` without loss of precision for small shares."""
    return -1.0 if share >= 1.0 else math.expm1(tokens * math.log1p(-share))


def _full(  # noqa: PLR0917 - six rates
    pair: float, span_c: float, new_c: float, span_m: float, new_m: float, chunk_m: float
) -> ChunkSeconds:
    half, new_c, new_m = 0.5 * pair, new_c + 0.5 * pair + span_c, new_m + span_m

    def seconds(new: int, computed: int) -> float:
        compute = new * (pair * computed + half * new + new_c) + span_c * computed
        memory = chunk_m + span_m * computed + new_m * new
        return compute if compute > memory else memory  # noqa: FURB136 - the hot path; max() costs a call

    return seconds


def _windowed(  # noqa: PLR0917 - six rates
    pair: float, span_c: float, new_c: float, span_m: float, new_m: float, chunk_m: float, window: int
) -> ChunkSeconds:
    inside = _full(pair, span_c, new_c, span_m, new_m, chunk_m)

    def seconds(new: int, computed: int) -> float:
        if computed + new <= window:
            return inside(new, computed)
        ramp = window - computed
        pairs = ramp * (computed + 0.5 * (ramp + 1)) + (new - ramp) * window if ramp > 0 else new * window
        span = new + (computed if computed < window else window - 1)
        compute = pair * pairs + span_c * span + new_c * new
        memory = chunk_m + span_m * span + new_m * new
        return compute if compute > memory else memory  # noqa: FURB136 - the hot path; max() costs a call

    return seconds


class RooflineCost(OperatorCost):
    """``StepCost`` of a model on a GPU from data-sheet figures alone."""

    def __init__(
        self,
        model: Model,
        gpu: Gpu,
        *,
        tensor_parallel_size: int = 1,
        pipeline_parallel_size: int = 1,
        enable_expert_parallel: bool = False,
        dtype: str = "auto",
        quantization: str | None = None,
        kv_cache_dtype: str = "auto",
        overhead: EngineOverhead | None = None,
        efficiency: Mapping[str, Efficiency] = EFFICIENCY,
    ) -> None:
        deployment = Deployment(
            tensor_parallel_size, pipeline_parallel_size, enable_expert_parallel, dtype, quantization, kv_cache_dtype
        )
        super().__init__(model, Roofline(gpu, efficiency), deployment, overhead)
