"""How FlashAttention-2 deals attention out to the SMs, and what uneven lengths or a chunk aboard cost there.

Each query head of a sequence (decodes alone: each KV head, its query heads packed) is one thread block that walks the
sequence's keys from end to end. An SM holds one block, or two; all heads of the batch are dealt out head by head. So:

- *Tail.* The last head's block of the longest sequence starts when most are done, and runs on alone: a step waits for
  ``longest - mean`` keys, where the mean is the one over tokens (Σ length² / Σ length), since blocks in flight are as
  likely long as they hold tokens. Equal lengths have none. A batch too small to fill the GPU is cut along its keys
  instead (split KV, fewer than 0.8 blocks per two per SM) and has none either: within 2 % from 512 tokens on.
- *Blocks, not bytes.* With a chunk aboard, query heads are not packed: ``heads / kv_heads`` times as many blocks, each
  with a start of its own, and keys read again, from the L2 cache as long as one KV head of all sequences fits there.
- *Empty blocks.* The grid is as long as the longest query: every decode gets a block per 64 tokens of the longest
  chunk, and all but one of them find nothing to do. 128 decodes beside 2,048 tokens: 127,000 blocks, 0.24 ms a layer.
- *One wave.* While decodes and chunk fit the SMs together, the longer of them is all one waits for.

Constants are fitted on 18,960 mixed batches of Llama-3.1-8B on an RTX PRO 6000 (LLMServingSim 5daddb2, MIT): mean error
7 %, on shapes left out as well. The tail has no constant of its own: the 174 uneven batches there of 64 and more
decodes are reproduced within 3 % by dealing out blocks one by one at these rates, and ``excess`` is what that leaves on
average over batches in random order (within 2 % of attention, root mean square over eight kinds of lengths). Taken over
to relatives by their number of SMs, shared memory and L2; the prefill fits of A100 and L40S say 20 and 19 ns per key of
a block, for the 22 here. FlashAttention-3 (Hopper) packs heads and balances splits, FlashInfer (Blackwell data centre)
runs two kernels: none of this there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from simulator.cost.shapes import AttentionShape
from simulator.hardware.gpu import Gpu

KEY_S = 22.1e-9  # a block alone, per key of head dimension 128: 512 bytes at 23 GB/s
BLOCK_S = 2.73e-6  # a block's start and end
EMPTY_S = 0.365e-6  # a block that finds nothing to do
LATE = 0.136  # slower per key for each pass over the same keys that does not run beside the first
L2_FULL, L2_RANGE = 0.459, 0.886  # of the L2: keys of one KV head at which rereads begin to miss, and until all do
QUERIES = 64  # of a block
SPLIT_BELOW = 0.8 * 2  # blocks per SM
# SMs and L2 in 10^6 bytes, as the makers' data sheets and CUDA's device query give them.
CHIPS = {
    "A10G": (80, 6), "L4": (58, 48), "A40": (84, 6), "A100": (108, 40), "L40S": (142, 96), "RTX-4090": (128, 72),
    "RTX-PRO-6000": (188, 128),
}  # fmt: skip

Beside = Callable[[float, int, int, int, int, float], float]
"""``(alone_s, context, longest, squares, chunk, chunk_s)`` -> seconds of one layer. alone_s: the same decodes without a
chunk; context, longest, squares: as in ``UnevenStepCost``; chunk: tokens of the longest; chunk_s: the chunks alone."""


def fuses(gpu: Gpu) -> bool:
    """Whether vLLM's default attention there is FlashAttention-2: NVIDIA GPUs of capability 8.x and 12.x.

    Measured on one GPU, assumed for its relatives.
    """
    return gpu.vendor == "NVIDIA" and int(gpu.compute_capability) in (8, 12)


@dataclass(frozen=True, slots=True)
class Blocks:
    """One attention layer of one rank, as thread blocks."""

    heads: int
    kv_heads: int
    sms: int
    slots: int  # blocks that run at a time
    l2_bytes: float
    key_s: float  # a block alone, per key
    kv_bytes: float  # of one key in one KV head

    def tail_s(self, num_decodes: int) -> float:
        """Seconds per token of ``excess`` in a batch of decodes alone."""
        return self.key_s if num_decodes * self.kv_heads >= SPLIT_BELOW * self.sms else 0.0

    def beside(self, num_decodes: int) -> Beside:
        """The attention that so many decodes add to a step with chunks; what depends on their number alone is fixed."""
        key_s, heads, group, slots = self.key_s, self.heads, self.heads / self.kv_heads, self.slots
        waves = num_decodes * heads / slots
        again = min(max(group * num_decodes / slots, 1.0), group) - 1.0  # passes over the keys after the first
        empty = waves * EMPTY_S
        miss, full = self.kv_bytes / self.l2_bytes / L2_RANGE * again, L2_FULL / L2_RANGE * again
        half = 0.5 / num_decodes
        start = waves * BLOCK_S
        per_key = key_s * (waves * (1.0 + LATE * again) + 0.5) / num_decodes

        def many(alone_s: float, context: int, longest: int, squares: int, chunk: int, chunk_s: float) -> float:
            del chunk_s  # its blocks take turns with the decodes'
            seconds = start + per_key * context
            missed = miss * context - full
            if missed > 0.0:
                alone_s *= 1.0 + min(missed, again)
            if alone_s > seconds:
                seconds = alone_s
            if longest:
                seconds += key_s * (longest - half * context - 0.5 * squares / context)
            return seconds + (chunk - 1) // QUERIES * empty

        def few(alone_s: float, context: int, longest: int, squares: int, chunk: int, chunk_s: float) -> float:
            del squares
            extra = (chunk - 1) // QUERIES
            seconds = max(BLOCK_S + key_s * (longest or context / num_decodes), alone_s) + extra * empty
            return seconds if (num_decodes + extra + 1) * heads > slots else max(seconds - chunk_s, 0.0)

        return many if waves > 1.0 else few


def excess(context: int, longest: int, squares: int) -> float:
    """Keys a decode step waits for at its end, tokens: longest context less the mean over tokens."""
    return longest - squares / context


def blocks_of(gpu: Gpu, shape: AttentionShape) -> Blocks | None:
    """The layer as FlashAttention-2 runs it on this GPU; None where another kernel does, or the chip is unknown."""
    chip = max((name for name in CHIPS if gpu.name.startswith(name)), key=len, default=None)
    if chip is None or not fuses(gpu) or shape.kind != "softmax":
        return None
    sms, l2 = CHIPS[chip]
    dim = shape.head_dim
    tile = 256 if dim <= 64 else 128 if dim <= 128 else 64  # keys of a tile, see flash_fwd_launch_template.h
    shared = (QUERIES + 2 * tile) * dim * 2  # bytes: queries, keys, values
    slots = sms * max(1, int((164 if gpu.compute_capability == 8.0 else 100) * 1024 / shared))
    return Blocks(
        shape.heads, shape.kv_heads, sms, slots, l2 * 1e6, KEY_S * dim / 128, shape.bytes_per_context / shape.kv_heads
    )
