"""What ``engine.lora_config`` builds."""

from __future__ import annotations

from math import ceil

from simulator.core.errors import HardwareError
from simulator.cost.beside import beside
from simulator.cost.lora import LoraPrice
from simulator.cost.memory import MemoryPlan
from simulator.cost.step import OperatorCost
from simulator.scenario.lora import LoraSpec
from simulator.scheduling.adapters import LoraPlan, MergePlan


def build_lora(
    config: LoraSpec, cost: OperatorCost, memory: MemoryPlan, *, given_blocks: bool
) -> tuple[LoraPlan, MemoryPlan]:
    """The adapters of an engine, and its memory with their slots. Raises HardwareError where they leave too little."""
    price = LoraPrice(cost, config.target_modules)
    size = price.bytes_per_rank
    ranks = config.ranks or (config.max_lora_rank,)
    load_s = size / cost.gpu.host_bandwidth
    if not config.unified_paging:
        assert config.max_loras is not None
        slots = config.max_loras * config.max_lora_rank * size
        memory = beside(memory, slots, 0.0, given_blocks=given_blocks)
        merge = None
        if config.merge_share is not None:
            merge = MergePlan(config.merge_share, config.merge_credit, price.merge_s, config.merge_pauses)
        return LoraPlan(ranks, config.max_loras, load_s, 0.0, price, merge), memory
    blocks = size / memory.block_bytes
    needed = ceil(memory.max_model_len / memory.block_size) + ceil(max(ranks) * blocks)
    if needed > memory.num_gpu_blocks - 1:
        raise HardwareError(
            f"an adapter of rank {max(ranks)} and one request of max_model_len = {memory.max_model_len} tokens need "
            f"{needed} KV blocks, {memory.num_gpu_blocks - 1} are usable.",
            remedy="Give a smaller max_model_len or a larger tensor_parallel_size.",
        )
    return LoraPlan(ranks, config.max_loras, load_s, blocks, price), memory
