"""Physics of measured kernels, with the few constants that a fit finds: what a correction multiplies.

Every function takes arrays of one length and gives seconds. ``p`` holds the fitted constants by name; ``Ceilings`` are
the GPU's own. Fits and calibrations share these functions, so a calibration runs exactly what was fitted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from simulator.cost.correction import Floats
from simulator.hardware.gpu import Gpu

Constants = Mapping[str, float]

# Output tiles of one thread block (rows of tokens x columns of the weight) and the ways to cut k among blocks: what
# cuBLAS and CUTLASS choose from on tensor-core GPUs. Each tile has its own fitted share of the peak.
TILES = ((64, 64), (64, 128), (128, 128), (64, 256), (128, 256), (256, 128))
SPLITS = (1, 2, 4, 8)
QUERY_ROWS = 128  # query rows of one thread block of FlashAttention and its kin


@dataclass(frozen=True)
class Ceilings:
    """What no kernel beats. ``flops`` in FLOP/s by number format, ``bandwidth`` in bytes/s.

    ``cache_bytes``: the last-level cache, in which a benchmark's operands may stay from call to call.
    """

    multiprocessors: int
    flops: Mapping[str, float]
    bandwidth: float
    cache_bytes: float = 0.0

    @staticmethod
    def of(gpu: Gpu, multiprocessors: int, cache_bytes: float = 0.0) -> Ceilings:
        return Ceilings(multiprocessors, dict(gpu.peak_flops), gpu.memory_bandwidth, cache_bytes)

    def peak(self, number: str) -> float:
        for name in (number, "bf16", "fp16", "fp32"):
            if name in self.flops:
                return self.flops[name]
        raise KeyError(number)

    def to_json(self) -> dict[str, Any]:
        return {"multiprocessors": self.multiprocessors, "flops": dict(self.flops), "bandwidth": self.bandwidth,
                "cache_bytes": self.cache_bytes}  # fmt: skip


def share(x: float) -> float:
    """A share of a ceiling from an unbounded constant."""
    return 1.0 / (1.0 + math.exp(-x))


def gemm(p: Constants, c: Ceilings, number: str, m: Floats, n: Floats, k: Floats, size: Floats) -> Floats:
    """A matrix product tile by tile: thread blocks fill the multiprocessors wave after wave, weights stream meanwhile.

    A last wave that fills part of the GPU costs a share of a full one (``last_wave``): fewer blocks run at higher
    clocks and share caches with nobody. ``size``: bytes moved. A library picks among tiles and cuts of k by a rule of
    its own, seldom the very best: the expected time is the mean over candidates (in the logarithm), each weighted by
    ``time^(-1/choice)``.
    """
    rate = c.peak(number) / c.multiprocessors
    stream = size / (c.bandwidth * share(p["memory"]))
    logs = []
    for i, (rows, columns) in enumerate(TILES):
        tiles = np.ceil(m / rows) * np.ceil(n / columns)
        per_k = 2.0 * rows * columns / (rate * share(p[f"tile_{i}"]))
        for cut in SPLITS:
            depth = np.ceil(k / cut / 64.0) * 64.0
            whole = tiles * cut / c.multiprocessors
            waves = np.maximum(1.0, whole + share(p["last_wave"]) * (np.ceil(whole) - whole))
            compute = waves * (per_k * (depth + p["prologue"]) + p["wave_s"])
            time = (compute**4 + stream**4) ** 0.25
            if cut > 1:  # partial sums are written and added up
                extra = p["reduce_s"] + cut * m * n * 4.0 / (c.bandwidth * p["cache"])
                time = np.where(k / cut >= 128.0, time + extra, 1e6 * time)
            logs.append(np.log(time))
    stack = np.asarray(logs)
    best = stack.min(axis=0)
    weight = np.exp(-(stack - best) / p["choice"])
    return np.asarray(p["launch_s"] + np.exp((weight * stack).sum(axis=0) / weight.sum(axis=0)))


def prefill(p: Constants, c: Ceilings, x: Mapping[str, Floats]) -> Floats:
    """Attention of prompts, launch and the write of new keys and values to the cache included.

    ``longest``: keys that the last query sees; ``flops_per_key_row``: FLOPs of one (query, key, head). A thread block
    walks through its keys one block of keys after the other, so no call is shorter than the walk of its longest row,
    however few its queries are. The write takes a thread block per token, whatever its size.
    """
    peak = c.peak("bf16") * share(p["compute"])
    walk = p["tail"] * QUERY_ROWS * x["longest"] * x["flops_per_key_row"] / (peak / c.multiprocessors)
    work = np.maximum(x["flops"] / peak, x["size"] / (c.bandwidth * share(p["memory"])))
    write = p["write_s"] * x["tokens"] * x["kv_heads"] ** 0.6
    return np.asarray(p["launch_s"] + write + (work**2 + walk**2) ** 0.5)


def decode_blocks(p: Constants, x: Mapping[str, Floats]) -> Floats:
    """Thread blocks of a decode batch: one per sequence and KV head where the kernel packs the query heads that share
    one (``packed`` 1), else one per sequence and query head.
    """
    return x["blocks"] if p["packed"] else x["blocks"] * x["group"]


def decode(p: Constants, c: Ceilings, x: Mapping[str, Floats]) -> Floats:
    """Attention of one query per sequence: keys stream past.

    Thread blocks beyond one wave start late (``wave_s`` each wave); a block walks through its ``context``, which long
    ones cut among several blocks.
    """
    waves = np.ceil(decode_blocks(p, x) / c.multiprocessors)
    peak, bandwidth = c.peak("bf16") * share(p["compute"]), c.bandwidth * share(p["memory"])
    work = np.maximum(x["flops"] / peak, x["size"] / bandwidth)
    walk = p["walk_s"] * np.log2(1.0 + x["context"] / 128.0)
    return np.asarray(p["launch_s"] + p["wave_s"] * (waves - 1.0) + walk + work)


def expert_loads(rows: Floats, experts: Floats, routing: Floats) -> Floats:
    """Rows of each expert: an array (points, most experts), zero beyond a point's experts.

    ``routing`` 0: equal loads, whole rows (fewer rows than experts leave some without). Above: shares follow a power
    law of that exponent, at its quantiles, over the range the tables were drawn from.
    """
    i = np.arange(int(experts.max()))[None, :]
    inside = i < experts[:, None]
    even = np.floor(rows / experts)[:, None] + (i < (rows % experts)[:, None])
    u = np.where(inside, (i + 0.5) / experts[:, None], 0.5)
    a = np.where(routing > 0.0, routing, 1.01)[:, None]
    # Many rows: drawn between 1 and 0.8 x tokens; few: between 0.01 and 2 (aiconfigurator's power_law_logits).
    low = np.where(rows > experts, 1.0, 0.01)[:, None]
    high = np.where(rows > experts, np.maximum(0.1 * rows, 2.0), 2.0)[:, None]
    law = ((high ** (1.0 - a) - low ** (1.0 - a)) * u + low ** (1.0 - a)) ** (1.0 / (1.0 - a))
    law = np.where(inside, law, 0.0)
    law = law / law.sum(axis=1, keepdims=True) * rows[:, None]
    return np.asarray(np.where(inside, np.where((routing > 0.0)[:, None], law, even), 0.0))


def expert_work(rows: Floats, experts: Floats, routing: Floats) -> tuple[Floats, Floats, Floats]:
    """(experts that get a row, blocks of rows over all experts, rows that these blocks hold)."""
    touched, blocks, padded = np.empty_like(rows), np.empty_like(rows), np.empty_like(rows)
    for start in range(0, len(rows), 2048):  # bounds the memory of the table of loads
        part = slice(start, start + 2048)
        loads = expert_loads(rows[part], experts[part], routing[part])
        mean = rows[part] / experts[part]
        height = np.clip(2.0 ** np.ceil(np.log2(np.maximum(mean, 1.0))), 16.0, 128.0)
        touched[part] = np.minimum(loads, 1.0).sum(axis=1)
        blocks[part] = np.maximum(np.ceil(np.where(loads < 0.5, 0.0, loads) / height[:, None]).sum(axis=1), 1.0)
        padded[part] = np.maximum(blocks[part] * height, rows[part])
    return np.maximum(touched, np.minimum(rows, 1.0)), blocks, padded


def experts(p: Constants, c: Ceilings, number: str, x: Mapping[str, Floats]) -> Floats:
    """A fused mixture-of-experts layer on one rank: ``rows`` (token, expert) pairs over ``experts`` experts.

    ``all_rows``: pairs over the experts of all ranks; some kernels move a ``foreign`` row's intermediate results too.
    ``weight``: elements of one expert; ``weight_bytes``: its bytes; ``row_bytes``: activation bytes per row;
    ``touched`` and ``padded`` as ``expert_work`` gives them. An expert nobody visits is not read.
    """
    compute = 2.0 * x["padded"] * x["weight"] / (c.peak(number) * share(p["compute"]))
    moved = x["rows"] + share(p["foreign"]) * (x["all_rows"] - x["rows"])
    stream = (x["touched"] * x["weight_bytes"] + moved * x["row_bytes"]) / (c.bandwidth * share(p["memory"]))
    fixed = p["launch_s"] + p["expert_s"] * x["experts"] + p["row_s"] * moved
    return np.asarray(fixed + (compute**4 + stream**4) ** 0.25)
