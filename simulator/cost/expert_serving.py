"""Experts served otherwise than from GPU memory by exact dispatch: in host memory, padded to a capacity, placed by
affinity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from simulator.core.errors import ModelError
from simulator.cost.expert_cache import Policy
from simulator.model.architecture import Model


@dataclass(frozen=True, slots=True)
class ExpertServing:
    """cached_experts: of each layer in GPU memory, on average; the others are in the host's. None: all of them.

    eviction: see ``expert_cache``; ``stream`` fetches whole layers, one after the other, as offloading engines do.
    prefetch: share of the experts to fetch that is known early enough to come while the layer computes.
    on_miss: fetch the expert, compute it on the CPU, or whichever is faster (Fiddler, arXiv:2402.07033).
    cpu_flops, cpu_bandwidth: of the host, FLOP/s and bytes/s, where it computes.
    capacity_token_fraction: rows that every expert computes whatever it gets, as a share of the batch's tokens (static
    gating; fairseq's ``moe_eval_capacity_token_fraction``). None: exactly the rows it gets.
    local_share: share of tokens whose expert is on the GPU they are on; None: one in as many as there are GPUs.
    context_coherent: tokens stay where their expert was until the next layer sends them on, so that only one exchange
    per layer is left (ExFlow, arXiv:2401.08383).
    """

    cached_experts: float | None = None
    eviction: Policy | Literal["stream"] = "lru"
    prefetch: float = 0.0
    on_miss: Literal["fetch", "compute", "faster"] = "fetch"
    cpu_flops: float = 0.0
    cpu_bandwidth: float = 0.0
    skew: float = 0.0
    sequence_skew: float = 0.0
    capacity_token_fraction: float | None = None
    local_share: float | None = None
    context_coherent: bool = False


def check_serving(model: Model, s: ExpertServing, *, spread: bool, exchange: bool) -> None:
    """spread: experts over several ranks; exchange: by all-to-all. Raises ModelError where it does not fit."""
    kinds = [layer.moe for layer in model.layers if layer.moe is not None]
    if not kinds:
        raise ModelError(f"{model.name} has no experts", where="experts", remedy="Leave experts out.")
    if s.cached_experts is not None:
        most = max(moe.num_experts for moe in kinds)
        if s.cached_experts > most:
            raise ModelError(
                f"{model.name} has {most} experts in a layer, not {s.cached_experts:g}",
                where="experts.cached_experts",
                remedy=f"Give at most {most}.",
            )
        if spread:
            raise ModelError(
                "experts in host memory do not go with experts spread over ranks here",
                where="experts.cached_experts",
                remedy="Set data_parallel_size: 1 and enable_expert_parallel: false.",
            )
    if (s.local_share is not None or s.context_coherent) and not exchange:
        raise ModelError(
            "affinity saves exchanges between expert-parallel ranks, and there are none by all-to-all",
            where="experts.local_share",
            remedy="Set data_parallel_size above 1 and all2all_backend: deepep_high_throughput.",
        )
