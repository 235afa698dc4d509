"""One law per operator: which physics prices its points, and over which coordinates a correction may bend.

Points are arrays of one length, by name. A fit and a calibration at run time ask the same law.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from simulator.cost import kernels
from simulator.cost.correction import Floats
from simulator.cost.kernels import Ceilings, Constants

Points = Mapping[str, Floats]


@dataclass(frozen=True)
class Law:
    """``start``: the constants before any fit. ``limit``: the seconds that no kernel undercuts.

    ``switches``: constants that are not fitted but chosen, by what follows the measurements better.
    ``features``: what a forest may ask about; only what the tables vary on its own.
    """

    operator: str
    start: Constants
    seconds: Callable[[Constants, Ceilings, str, Points], Floats]
    coordinates: Callable[[Constants, Points], Points]
    limit: Callable[[Ceilings, str, Points], Floats]
    switches: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    features: Callable[[Ceilings, Points, Points], Points] | None = None  # of ceilings, points, coordinates


def gemm_points(m: Floats, n: Floats, k: Floats, weight_bytes: float, activation_bytes: float = 2.0) -> Points:
    """``weight_bytes`` and ``activation_bytes`` per element."""
    return {"m": m, "n": n, "k": k, "size": weight_bytes * n * k + activation_bytes * m * (n + k)}


def _gemm(p: Constants, c: Ceilings, number: str, x: Points) -> Floats:
    return kernels.gemm(p, c, number, x["m"], x["n"], x["k"], x["size"])


# Output tiles whose count and whose last wave's fill tell which kernel a library takes, and how much of it idles.
_WAVES = ((64, 64), (64, 128), (128, 128), (64, 256), (128, 256), (256, 128), (128, 192), (192, 128))


def _gemm_features(c: Ceilings, x: Points, coordinates: Points) -> Points:
    found = dict(coordinates)
    m, n, k = (coordinates[name] for name in "mnk")
    found |= {"mn": m + n, "nk": n + k, "mk": m + k, "mnk": m + n + k}
    for rows, columns in _WAVES:
        waves = np.ceil(x["m"] / rows) * np.ceil(x["n"] / columns) / c.multiprocessors
        found[f"waves_{rows}x{columns}"] = np.log(waves)
        found[f"fill_{rows}x{columns}"] = waves / np.ceil(waves)
    return found


def _expert_features(c: Ceilings, x: Points, coordinates: Points) -> Points:
    found = {name: column for name, column in coordinates.items() if name != "uneven"}
    waves = x["blocks"] * np.ceil(x["inter"] / 128.0) / c.multiprocessors
    size = x["inter"].astype(np.int64)
    return found | {
        "waves": np.log(waves),
        "fill": waves / np.ceil(waves),
        "touched": np.log(np.maximum(x["touched"], 1e-3)),
        "padded": np.log(x["padded"]),
        "work": np.log(x["rows"] * x["weight"]),
        "factor": np.log2((size & -size).astype(float)),  # the largest power of two that divides the inner size
        "elements": np.log(x["weight"] / (x["hidden"] * x["inter"])),  # two matrices per expert, or three
        "all_rows": np.log(x["all_rows"]),
    }


def _latent_prefill_features(c: Ceilings, x: Points, coordinates: Points) -> Points:
    """Nothing that counts keys: no table holds chunks of MLA prompts after a cached context."""
    del c
    found = {name: column for name, column in coordinates.items() if name != "keys"}
    return found | {"batch": np.log(x["batch"]), "rows": np.log(x["rows"])}


def _latent_decode_features(c: Ceilings, x: Points, coordinates: Points) -> Points:
    waves = x["batch"] / c.multiprocessors
    return dict(coordinates) | {
        "keys": coordinates["batch"] + coordinates["context"],
        "rows": coordinates["batch"] + coordinates["heads"],
        "work": coordinates["batch"] + coordinates["context"] + coordinates["heads"],
        "fill": waves / np.ceil(waves),
    }


def _gemm_limit(c: Ceilings, number: str, x: Points) -> Floats:
    return np.maximum(2.0 * x["m"] * x["n"] * x["k"] / c.peak(number), x["size"] / c.bandwidth)


def _uneven(group: Floats) -> Floats:
    """1 where the query heads of a KV head are no power of two: kernels that pack them into a tile divide slowly."""
    return np.where(np.abs(np.log2(group) - np.rint(np.log2(group))) > 1e-6, 1.0, 0.0)


def prefill_points(
    batch: Floats, new: Floats, computed: Floats, heads: Floats, kv_heads: Floats, head_dim: Floats, window: Floats,
    kv_bytes: float,
) -> Points:  # fmt: skip
    """``window`` 0: none."""
    view = np.where(window > 0, window, np.inf)
    ramp = np.clip(view - computed, 0.0, new)  # queries whose view still grows
    inner = np.where(np.isfinite(view), view, 0.0)
    pairs = ramp * (computed + 0.5 * (ramp + 1.0)) + (new - ramp) * inner
    span = new + np.minimum(computed, np.where(np.isfinite(view), view - 1.0, np.inf))
    per_pair = 4.0 * head_dim
    size = batch * (span * 2.0 * kv_heads * head_dim * kv_bytes + new * 4.0 * heads * head_dim)
    return {
        "flops": batch * heads * pairs * per_pair,
        "size": size,
        "rows": batch * heads * new,
        "queries": new,
        "tokens": batch * new,
        "kv_heads": kv_heads,
        "keys": pairs / new,
        "longest": np.minimum(computed + new, view),
        "clipped": np.where(computed + new > view, 1.0, 0.0),
        "uneven": _uneven(heads / kv_heads),
        "flops_per_key_row": per_pair,
        "group": heads / kv_heads,
    }


def decode_points(
    batch: Floats, context: Floats, heads: Floats, kv_heads: Floats, head_dim: Floats, window: Floats, kv_bytes: float
) -> Points:
    seen = np.where(window > 0, np.minimum(context, np.maximum(window, 1.0)), context)
    return {
        "flops": batch * seen * heads * 4.0 * head_dim,
        "size": batch * (seen * 2.0 * kv_heads * head_dim * kv_bytes + 4.0 * heads * head_dim),
        "blocks": batch * kv_heads,
        "context": seen,
        "kv_heads": kv_heads,
        "group": heads / kv_heads,
        "clipped": np.where(seen < context, 1.0, 0.0),
        "uneven": _uneven(heads / kv_heads),
    }


def _logs(*names: str, plain: tuple[str, ...] = ()) -> Callable[[Constants, Points], Points]:
    return lambda _, x: {**{name: np.log(x[name]) for name in names}, **{name: x[name] for name in plain}}


def _prefill(p: Constants, c: Ceilings, number: str, x: Points) -> Floats:
    del number
    return kernels.prefill(p, c, x)


def _decode(p: Constants, c: Ceilings, number: str, x: Points) -> Floats:
    del number
    return kernels.decode(p, c, x)


def _decode_coordinates(p: Constants, x: Points) -> Points:
    found = {name: np.log(x[name]) for name in ("context", "kv_heads", "group")}
    return {**found, "blocks": np.log(kernels.decode_blocks(p, x)), "uneven": x["uneven"], "clipped": x["clipped"]}


def _work_limit(c: Ceilings, number: str, x: Points) -> Floats:
    del number
    return np.maximum(x["flops"] / c.peak("bf16"), x["size"] / c.bandwidth)


def expert_points(
    rows: Floats, all_rows: Floats, experts: Floats, routing: Floats, hidden: Floats, inter: Floats, gated: Floats,
    weight_bytes: float,
) -> Points:  # fmt: skip
    """``weight_bytes`` per element; ``gated``: three matrices per expert instead of two."""
    weight = hidden * inter * np.where(gated > 0, 3.0, 2.0)
    touched, blocks, padded = kernels.expert_work(rows, experts, routing)
    return {
        "rows": rows, "all_rows": all_rows, "experts": experts, "routing": routing,
        "weight": weight, "weight_bytes": weight * weight_bytes, "row_bytes": 2.0 * (3.0 * hidden + 4.0 * inter),
        "hidden": hidden, "inter": inter, "touched": touched, "blocks": blocks, "padded": padded,
    }  # fmt: skip


def _expert_coordinates(p: Constants, x: Points) -> Points:
    del p
    return {
        "rows": np.log(x["rows"]),
        "experts": np.log(x["experts"]),
        "load": np.log(x["rows"] / x["experts"]),
        "weight": np.log(x["weight"]),
        "blocks": np.log(x["blocks"]),
        "tiles": np.log(x["blocks"] * np.ceil(x["inter"] / 32.0)),
        "hidden": np.log(x["hidden"]),
        "inter": np.log(x["inter"]),
        "routing": x["routing"],
        "spread": np.log(x["all_rows"] / x["rows"]),
        "uneven": np.where(x["inter"] % 16.0 > 0.0, 1.0, 0.0),  # rows that are no multiple of a vector load
    }


def _experts_limit(c: Ceilings, number: str, x: Points) -> Floats:
    compute = 2.0 * x["rows"] * x["weight"] / c.peak(number)
    # At least the experts of one token are read; a random draw may touch fewer experts than the law's quantiles.
    least = np.minimum(x["touched"], np.maximum(1.0, 0.7 * x["touched"]))
    return np.maximum(compute, least * x["weight_bytes"] / c.bandwidth)


def latent_decode_points(batch: Floats, context: Floats, heads: Floats, flops: Floats, size: Floats) -> Points:
    """``flops`` and ``size``: of the whole call, absorbed projections included (see ``AttentionShape``)."""
    return {"batch": batch, "context": context, "heads": heads, "flops": flops, "size": size, "blocks": batch,
            "group": np.maximum(heads / 64.0, 1.0)}  # fmt: skip


def latent_prefill_points(
    batch: Floats, new: Floats, computed: Floats, heads: Floats, flops: Floats, size: Floats, flops_per_key_row: Floats
) -> Points:
    return {
        "flops": flops, "size": size, "rows": batch * heads * new, "keys": computed + 0.5 * (new + 1.0),
        "longest": computed + new, "flops_per_key_row": flops_per_key_row, "tokens": batch * new, "kv_heads": heads,
        "queries": new, "heads": heads, "batch": batch,
    }  # fmt: skip


GEMM = Law(
    "gemm",
    {
        "launch_s": 2.2e-6, "memory": 1.5, "wave_s": 3e-7, "reduce_s": 1e-6, "prologue": 64.0, "cache": 1.0,
        "choice": 0.1, "last_wave": 0.0, **{f"tile_{i}": 0.8 for i in range(len(kernels.TILES))},
    },
    _gemm, _logs("m", "n", "k"), _gemm_limit, features=_gemm_features,
)  # fmt: skip
PREFILL = Law(
    "prefill_attention",
    {"launch_s": 8e-6, "compute": 0.5, "memory": 1.0, "tail": 0.5, "write_s": 1e-9},
    _prefill, _logs("rows", "keys", "group", "queries", "tokens", "kv_heads", plain=("clipped", "uneven")), _work_limit,
)  # fmt: skip
DECODE = Law(
    "decode_attention",
    {"launch_s": 8e-6, "compute": 0.5, "memory": 1.5, "walk_s": 5e-7, "wave_s": 3e-6},
    _decode, _decode_coordinates, _work_limit, {"packed": (1.0, 0.0)},
)  # fmt: skip
EXPERTS = Law(
    "experts",
    {"launch_s": 2.5e-5, "compute": 0.0, "memory": 1.0, "expert_s": 1e-8, "row_s": 1e-10, "foreign": 0.0},
    kernels.experts, _expert_coordinates, _experts_limit, features=_expert_features,
)  # fmt: skip
# What an MLA layer does beside its projections: norms, rotary embedding, absorbed products, attention.
LATENT_DECODE = Law(
    "latent_decode",
    {"launch_s": 3e-5, "compute": 0.5, "memory": 1.0, "walk_s": 1e-6, "wave_s": 1e-6},
    _decode, _logs("batch", "context", "heads"), _work_limit, {"packed": (0.0,)}, _latent_decode_features,
)  # fmt: skip
LATENT_PREFILL = Law(
    "latent_prefill",
    {"launch_s": 5e-5, "compute": 0.0, "memory": 0.5, "tail": 0.5, "write_s": 1e-9},
    _prefill, _logs("tokens", "queries", "keys", "heads"), _work_limit, features=_latent_prefill_features,
)  # fmt: skip
LAWS: Mapping[str, Law] = {law.operator: law for law in (GEMM, PREFILL, DECODE, EXPERTS, LATENT_DECODE, LATENT_PREFILL)}
