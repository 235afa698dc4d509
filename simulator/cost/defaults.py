"""Engine arguments vLLM chooses by GPU when the user gives none."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.cost.overhead import EngineOverhead, capture_sizes
from simulator.hardware.gpu import GIB, Gpu
from simulator.model.architecture import Model


@dataclass(frozen=True, slots=True)
class BatchDefaults:
    max_num_batched_tokens: int
    max_num_seqs: int


def batch_defaults(gpu: Gpu, model: Model | None = None) -> BatchDefaults:
    """VLLM 0.33's API server: ``EngineArgs.get_batch_defaults``.

    At least 160 GiB: 16384 and 1024; at least 70 GiB and not an A100: 8192 and 1024; otherwise 2048 and 256. A model
    with very short contexts lowers the tokens to ``max_num_seqs x max_model_len``.
    """
    if gpu.memory_bytes >= 160 * GIB:
        tokens, seqs = 16384, 1024
    elif gpu.memory_bytes >= 70 * GIB and "a100" not in gpu.name.lower():
        tokens, seqs = 8192, 1024
    else:
        tokens, seqs = 2048, 256
    return BatchDefaults(min(tokens, seqs * model.max_model_len) if model else tokens, seqs)


def engine_overhead(
    gpu: Gpu,
    *,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    async_scheduling: bool = True,
    enforce_eager: bool = False,
) -> EngineOverhead:
    """Overhead of a vLLM engine with these arguments: its CUDA-graph sizes follow from them and from the GPU."""
    ceiling = 1024 if int(gpu.compute_capability) == 10 else 512
    sizes = () if enforce_eager else capture_sizes(max_num_seqs, max_num_batched_tokens, ceiling)
    return EngineOverhead(async_scheduling=async_scheduling, graph_sizes=sizes)
