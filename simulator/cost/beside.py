"""What else lies in the GPUs' memory beside a model: drafts, adapters."""

from __future__ import annotations

from dataclasses import replace

from simulator.core.errors import HardwareError
from simulator.core.units import format_bytes
from simulator.cost.memory import MemoryPlan


def beside(plan: MemoryPlan, weight_bytes: int, kv_bytes_per_token: float, *, given_blocks: bool) -> MemoryPlan:
    """The plan with more weights and, for every token, more KV on each GPU: fewer blocks for the model.

    given_blocks: their number is the user's (``num_gpu_blocks_override``). Raises HardwareError when what is left does
    not hold one request of ``max_model_len``.
    """
    grown = plan.block_bytes + round(kv_bytes_per_token * plan.block_size)
    room = plan.kv_cache_bytes - weight_bytes
    blocks = plan.num_gpu_blocks if given_blocks else max(room // grown, 0)
    share = blocks / plan.num_gpu_blocks
    if plan.max_concurrency * share < 1.0:
        raise HardwareError(
            f"{format_bytes(weight_bytes)} of weights beside {plan.model} leave {format_bytes(max(room, 0))} per GPU, "
            f"too little for one request of max_model_len = {plan.max_model_len} tokens.",
            remedy="Give a larger tensor_parallel_size, a smaller max_model_len or fewer weights.",
        )
    return replace(
        plan,
        weight_bytes=plan.weight_bytes + weight_bytes,
        kv_cache_bytes=blocks * grown,
        num_gpu_blocks=blocks,
        block_bytes=grown,
        kv_tokens=int(plan.kv_tokens * share),
        max_concurrency=plan.max_concurrency * share,
    )
