"""Engine arguments under vLLM's names. Defaults are those of vLLM 0.33's API server on an 80 GB or larger GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class EngineArgs:
    """See docs/scenarios.md for each argument; every one of them is modelled."""

    policy: str = "vllm"  # registered engine policy, or package.module:Class
    scheduling_policy: str = "fcfs"  # fcfs | priority
    max_num_seqs: int = 1024
    max_num_batched_tokens: int = 8192
    max_model_len: int = 0  # tokens; 0: from the model's config
    block_size: int = 16  # tokens per KV block
    num_gpu_blocks_override: int | None = None
    gpu_memory_utilization: float = 0.92
    enable_prefix_caching: bool | None = None  # None: as the policy does by default
    enable_chunked_prefill: bool = True
    long_prefill_token_threshold: int = 0
    scheduler_reserve_full_isl: bool = True
    watermark: float = 0.0
    async_scheduling: bool | None = None  # None: as the policy does by default
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    data_parallel_size: int = 1  # ranks with schedulers and KV caches of their own that share experts
    prefill_context_parallel_size: int = 1  # GPUs that share each prompt's tokens and the KV of requests
    decode_context_parallel_size: int = 1  # tensor-parallel ranks that share the KV of requests
    enable_eplb: bool = False
    eplb_step_interval: int = 3000  # steps
    options: Mapping[str, object] = field(default_factory=dict)  # the policy's own
