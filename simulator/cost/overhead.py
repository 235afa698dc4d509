"""What the engine adds to its kernels: CPU work, sampling's round trip, CUDA-graph padding."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T", float, NDArray[np.float64])


def capture_sizes(
    max_num_seqs: int = 1024, max_num_batched_tokens: int = 8192, ceiling: int = 512, top: int | None = None
) -> tuple[int, ...]:
    """Token counts vLLM 0.33 captures CUDA graphs for: 1, 2, 4, steps of 8 below 256, then of 16.

    The largest is ``min(2 max_num_seqs, ceiling, max_num_batched_tokens)``; ``max_num_seqs`` and
    ``max_num_batched_tokens`` are captured too where they fit (``VllmConfig._set_cudagraph_sizes``). The ceiling is
    1024 on compute capability 10.x. ``top``: ``max_cudagraph_capture_size`` when the user gives one.
    """
    top = min(top or min(2 * max_num_seqs, ceiling), max_num_batched_tokens)
    sizes = {s for s in (1, 2, 4, *range(8, 256, 8), *range(256, top + 1, 16)) if s <= top}
    sizes |= {s for s in (max_num_batched_tokens, max_num_seqs) if s <= top}
    return tuple(sorted(sizes))


@dataclass(frozen=True, slots=True)
class EngineOverhead:
    """Seconds beside the kernels of a step. ``defaults.py`` holds fitted presets; what stands here is an assumption.

    With ``async_scheduling`` the CPU prepares step N+1 while step N runs, so a step lasts
    ``gpu_gap_s + max(GPU, CPU)``; without it the GPU waits: ``gpu_gap_s + GPU + CPU``. Launching the kernels of a step
    that no CUDA graph covers takes CPU time too, which always overlaps with the GPU.

    ``api_request_s`` and ``api_token_s`` are what a client over HTTP sees before its first token beside the engine:
    connection, validation and tokenisation of the prompt in the API server, and the way back. The engine's own
    metrics do not hold them.
    """

    gpu_gap_s: float = 0.2e-3  # input copies, sampled tokens back and forth: the GPU idles whatever the scheduling
    cpu_step_s: float = 0.7e-3  # schedule, prepare inputs, process outputs
    cpu_per_sequence_s: float = 6e-6
    launch_s: float = 4e-6  # CPU seconds per kernel or piece of a graph launched outside a full graph, Python included
    async_scheduling: bool = True
    graph_sizes: tuple[int, ...] = capture_sizes()  # empty: enforce_eager
    full_graphs: bool = True  # attention of pure decodes inside the graph (vLLM from 0.11: FULL_AND_PIECEWISE)
    source: str = "assumption"
    api_request_s: float = 0.0
    api_token_s: float = 0.0  # per prompt token

    def padded(self, tokens: int) -> int:
        """Tokens the kernels see: the next captured size, or the batch itself above the largest."""
        i = bisect_left(self.graph_sizes, tokens)
        return self.graph_sizes[i] if i < len(self.graph_sizes) else tokens

    def serial_s(self, num_sequences: int) -> float:
        """Seconds added to a step's GPU time."""
        return self.gpu_gap_s + (0.0 if self.async_scheduling else self._cpu(num_sequences))

    def floor_s(self, num_sequences: int, launches: int) -> float:
        """CPU seconds the GPU's work hides, or waits for when it is shorter."""
        return launches * self.launch_s + (self._cpu(num_sequences) if self.async_scheduling else 0.0)

    def request_s(self, prompt_tokens: T) -> T:
        """Seconds a client's TTFT holds beyond the engine's; of one prompt or of an array of them."""
        return self.api_request_s + self.api_token_s * prompt_tokens

    def _cpu(self, num_sequences: int) -> float:
        return self.cpu_step_s + self.cpu_per_sequence_s * num_sequences
