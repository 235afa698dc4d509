"""Host memory as a place for the KV of requests that gave way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from simulator.core.errors import PolicyError
from simulator.core.options import Range
from simulator.scheduling.args import EngineArgs


@dataclass(frozen=True)  # without slots: options of policies derive from several such classes
class Swapping:
    """Options. preemption: the KV of a request that gives way is thrown away and recomputed, or moved to host memory.
    swap_space_gib: that memory, per GPU; where it is full, requests are recomputed. pcie_gb_s: GB/s over the link, one
    direction; PCI Express 4.0 with 16 lanes carries 31.5, pinned copies reach about 0.8 of it.
    kv_bytes_per_token: of all layers, on one GPU; needed to swap."""

    preemption: Literal["recompute", "swap"] = "recompute"
    swap_space_gib: Annotated[float, Range(0)] = 64.0
    pcie_gb_s: Annotated[float, Range(1e-3)] = 25.0
    kv_bytes_per_token: Annotated[int, Range(0)] = 0


class HostMemory:
    """How much KV it holds, and how long a block takes to it or back."""

    def __init__(self, options: Swapping, args: EngineArgs) -> None:
        swaps = options.preemption == "swap"
        if swaps and not options.kv_bytes_per_token:
            raise PolicyError(
                f"engine policy {args.policy!r}: preemption 'swap' needs the option kv_bytes_per_token.",
                remedy="Give the KV bytes of a token on one GPU, such as 131072 for Llama-3.1-8B in 16 bit.",
            )
        block_bytes = options.kv_bytes_per_token * args.block_size
        self.block_copy_s = block_bytes / (options.pcie_gb_s * 1e9)
        self.blocks = int(options.swap_space_gib * (1 << 30) / block_bytes) if swaps else 0

    def takes(self, blocks: int, taken: int) -> bool:
        """Whether there is room for so many more blocks beside those that it holds."""
        return self.blocks > 0 and blocks <= self.blocks - taken
