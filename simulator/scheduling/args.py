"""Engine arguments under vLLM's names. Defaults are those of vLLM 0.33's API server on an 80 GB or larger GPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Speculation:
    """What is drafted and verified per request and step (vLLM's ``speculative_config``).

    rates: rate ``i`` is the probability that the first ``i + 1`` drafted tokens are all accepted.
    tree_size: tokens verified beside the last one, where drafts are trees of depth ``num_speculative_tokens``; None:
    as many as are drafted.
    schedule: (first batch size, tokens drafted from there on), ascending; empty: always ``num_speculative_tokens``.
    """

    method: str
    num_speculative_tokens: int
    rates: tuple[float, ...]
    tree_size: int | None = None
    schedule: tuple[tuple[int, int], ...] = ()

    def drafts(self, num_decodes: int) -> int:
        """Tokens drafted per request in a step of so many."""
        drafts = self.num_speculative_tokens
        for first, number in self.schedule:
            if first <= num_decodes:
                drafts = number
        return drafts

    @property
    def queries(self) -> tuple[tuple[int, int], ...]:
        """(first batch size, tokens computed per decoding request and step from there on)."""
        schedule = self.schedule or ((1, self.num_speculative_tokens),)
        return tuple((first, 1 + self.verified(drafts)) for first, drafts in schedule)

    def verified(self, drafts: int) -> int:
        """Tokens verified per request, beside its last one."""
        return self.tree_size if self.tree_size is not None and drafts else drafts


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
    shared_prefix_attention: str = "none"  # none | batch | groups
    enable_eplb: bool = False
    eplb_step_interval: int = 3000  # steps
    speculation: Speculation | None = None
    options: Mapping[str, object] = field(default_factory=dict)  # the policy's own
