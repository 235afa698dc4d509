"""How FlashAttention-2 deals attention out to the SMs, and what uneven lengths or a chunk aboard cost there.

Each query head of a sequence (decodes alone: each KV head, its query heads packed) is one thread block that walks the
sequence's keys from end to end. An SM holds one block, or two; all heads of the batch are dealt out head by head. So:

- *Tail.* The last head's block of the longest sequence starts when most are done, and runs on alone: a step waits for
  ``longest - mean - context / 2 slots`` keys. The mean is the one over tokens (sum of squared lengths over their sum),
  since blocks in flight are as likely long as they hold keys; the last term is what this block has read when the others
  end, on average over where in the batch it stands. Equal lengths have no tail. Nor has a batch too small to fill the
  GPU, which is cut along its keys (split KV; fewer than 0.8 blocks for each of two per SM): within 1 %.
- *Blocks, not bytes.* With a chunk aboard, query heads are not packed: ``heads / kv_heads`` times as many blocks, each
  with a start of its own, and keys read again, from the L2 cache as long as one KV head of all sequences fits there.
- *Empty blocks.* The grid is as long as the longest query: every decode gets a block per 64 tokens of the longest
  chunk, and all but one of them find nothing to do. 128 decodes beside 2,048 tokens: 127,000 blocks, 0.24 ms a layer.
- *One wave.* While decodes and chunk fit the SMs together, the longer of them is all one waits for.

The rates are fitted on Llama-3.1-8B on an RTX PRO 6000 (LLMServingSim 5daddb2, MIT; ``python -m profiler.blocks``): on
17,886 mixed batches, mean error 9 % in and out of the fit, 4 % at 32 to 128 decodes of 256 to 1,300 tokens; and
``packed_s`` on 125 batches with some sequences four times as long (there they come first: ``context / slots``), 1.4 %
off on average, 5.4 % as if equal. Dealing blocks out one by one agrees with the formula within 2 % of attention over
seven kinds of lengths in random order. Taken over to relatives by number of SMs, shared memory and L2 (prefill fits
of A100 and L40S say 20 and 19 ns per key of a block, for the 22 here). Not on FlashAttention-3 (Hopper: packs heads,
balances splits) or FlashInfer (Blackwell data centre: two kernels).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from simulator.cost.shapes import AttentionShape
from simulator.hardware.gpu import Gpu


@dataclass(frozen=True, slots=True)
class Rates:
    """What a thread block takes on an SM."""

    key_s: float = 22.1e-9  # alone, per key of head dimension 128: 512 bytes at 23 GB/s
    packed_s: float = 20.5e-9  # the same with the query heads of a KV head in one block, decodes alone
    block_s: float = 3.04e-6  # start and end
    empty_s: float = 0.329e-6  # one that finds nothing to do
    late: float = 0.127  # slower per key for each pass over the same keys that does not run beside the first
    l2_full: float = 0.554  # of the L2: keys of one KV head at which rereads begin to miss,
    l2_range: float = 0.888  # and how much more until all do


MEASURED = Rates()
QUERIES = 64  # of a block
SPLIT_BELOW = 0.8 * 2  # blocks per SM
# SMs and L2 in 10^6 bytes, as the makers' data sheets and CUDA's device query give them.
CHIPS = {
    "A10": (72, 6), "A10G": (80, 6), "L4": (58, 48), "A40": (84, 6), "RTX-A5000": (64, 6), "RTX-A6000": (84, 6),
    "A100": (108, 40), "L40S": (142, 96), "RTX-4090": (128, 72), "RTX-PRO-6000": (188, 128),
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
    rates: Rates  # of this head dimension
    kv_bytes: float  # of one key in one KV head

    def tail_s(self, num_decodes: int) -> float:
        """Seconds a batch of decodes waits at its end, per key of ``ahead``."""
        return self.rates.packed_s if num_decodes * self.kv_heads >= SPLIT_BELOW * self.sms else 0.0

    def ahead(self, context: int, longest: int, squares: int) -> float:
        """Keys that the longest sequence's last block still has to read when the others are done: less the mean over
        tokens, less what it has read by then if it stands anywhere in the batch, the middle on average.
        """
        return max(longest - squares / context - 0.5 * context / self.slots, 0.0)

    def beside(self, num_decodes: int) -> Beside:
        """The attention that so many decodes add to a step with chunks; what depends on their number alone is fixed."""
        rates, heads, group, slots = self.rates, self.heads, self.heads / self.kv_heads, self.slots
        key_s, block_s = rates.key_s, rates.block_s
        waves = num_decodes * heads / slots
        again = min(max(group * num_decodes / slots, 1.0), group) - 1.0  # passes over the keys after the first
        empty = waves * rates.empty_s
        miss = again * self.kv_bytes / self.l2_bytes / rates.l2_range  # passes that miss the L2, per key
        full = again * rates.l2_full / rates.l2_range
        half, lag = 0.5 / num_decodes, 0.5 / slots
        start = waves * block_s
        per_key = key_s * (waves * (1.0 + rates.late * again) + 0.5) / num_decodes

        def many(alone_s: float, context: int, longest: int, squares: int, chunk: int, chunk_s: float) -> float:
            del chunk_s  # its blocks take turns with the decodes'
            seconds = start + per_key * context
            missed = miss * context - full
            if missed > 0.0:
                alone_s *= 1.0 + min(missed, again)
            if alone_s > seconds:
                seconds = alone_s
            ahead = longest - (half + lag) * context - 0.5 * squares / context
            if ahead > 0.0:
                seconds += key_s * ahead
            return seconds + (chunk - 1) // QUERIES * empty

        def few(alone_s: float, context: int, longest: int, squares: int, chunk: int, chunk_s: float) -> float:
            del squares
            extra = (chunk - 1) // QUERIES
            seconds = max(block_s + key_s * (longest or context / num_decodes), alone_s) + extra * empty
            return seconds if (num_decodes + extra + 1) * heads > slots else max(seconds - chunk_s, 0.0)

        return many if waves > 1.0 else few


def blocks_of(gpu: Gpu, shape: AttentionShape, rates: Rates = MEASURED) -> Blocks | None:
    """The layer as FlashAttention-2 runs it on this GPU; None where another kernel does, or the chip is unknown."""
    chip = max((name for name in CHIPS if gpu.name.startswith(name)), key=len, default=None)
    if chip is None or not fuses(gpu) or shape.kind != "softmax":
        return None
    sms, l2 = round(CHIPS[chip][0] * gpu.compute_share), CHIPS[chip][1] * gpu.memory_share
    dim = shape.head_dim
    tile = 256 if dim <= 64 else 128 if dim <= 128 else 64  # keys of a tile, see flash_fwd_launch_template.h
    shared = (QUERIES + 2 * tile) * dim * 2  # bytes: queries, keys, values
    slots = sms * max(1, int((164 if gpu.compute_capability == 8.0 else 100) * 1024 / shared))
    return Blocks(
        shape.heads, shape.kv_heads, sms, slots, l2 * 1e6,
        replace(rates, key_s=rates.key_s * dim / 128, packed_s=rates.packed_s * dim / 128),
        shape.bytes_per_context / shape.kv_heads,
    )  # fmt: skip
