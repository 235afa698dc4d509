"""Tables in, calibration out: every operator fitted and its error on held-out shapes measured."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from statistics import median_low

import numpy as np
import pandas as pd
from scipy.optimize import nnls

from profiler.fit.crossval import Fitted, fit
from profiler.fit.host import gpu_seconds, with_twin
from profiler.fit.operators import DEEPSEEK, DEEPSEEK_HIDDEN, RECIPES, Recipe
from profiler.tables.columns import Tables
from simulator.core.errors import CalibrationError
from simulator.cost.calibration import Calibration, Collective, Fit, HeldOut, Stream
from simulator.cost.correction import Floats
from simulator.cost.kernels import Ceilings
from simulator.cost.laws import gemm_points

Progress = Callable[[str], None]
MINIMUM = 40  # points of one operator and format worth a fit
USELESS = 0.3  # held-out error beyond which a near relation's kernels are the better guess
# Timed among a model's other layers, so that operands come from memory. Where rows of benchmarks that keep them
# in the cache are left out, these few stand in their place and count for several.
SERVED = "LLMServingSim"
STANDS_FOR = 6.0
HOST = " (the host's time: another format's stands in)"
NETWORK = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")


def calibrate(
    tables: Tables, gpu: str, ceilings: Ceilings, *, name: str | None = None,
    progress: Progress = lambda _: None, kept: Calibration | None = None, only: Collection[str] = (),
) -> Calibration:  # fmt: skip
    """Fits every operator the tables hold. Deterministic: the same tables give the same calibration.

    With ``only``, these alone ("gemm", or "gemm fp8" for one format) are fitted again and all other fits are those of
    ``kept``.

    Raises CalibrationError when they hold nothing that can be fitted.
    """
    fits: dict[tuple[str, str], Fit] = {}
    for operator, recipe in RECIPES.items():
        if only:
            stay = {k: f for k, f in (kept.fits if kept else {}).items() if k[0] == operator and not _wanted(only, *k)}
            fits |= stay
            if not any(x.split()[0] == operator for x in only):
                continue
        if operator.startswith("latent") and ("gemm", "bf16") in fits:
            frame = without_projections(tables.frames, operator, fits["gemm", "bf16"], ceilings)
        else:
            frame = tables.frames.get(operator)
        if frame is None:
            continue
        for key, part in parts(frame, recipe):
            if only and not _wanted(only, operator, key):
                continue
            timed = part.loc[~part["host"]] if "host" in part else part
            if len(timed) < MINIMUM:
                progress(f"{operator} {key}: {len(timed)} points are too few")
                continue
            if timed.drop_duplicates(list(recipe.shape)).shape[0] < recipe.fewest:
                progress(f"{operator} {key}: fewer than {recipe.fewest} whole shapes")
                continue
            found = one(operator, key, recipe, ceilings, part)
            if found.held_out is None or found.held_out.mean > USELESS:
                progress(f"{operator} {key}: left out, its error on held-out shapes is too large or unknown")
                continue
            fits[operator, key] = found
            progress(f"{operator} {key}: {100 * found.held_out.mean:.1f} % on {found.held_out.shapes} held-out shapes")
    collectives, errors = network(tables.frames)
    stream = elementwise(tables.frames.get("elementwise"), ceilings)
    if not fits and not collectives and stream is None:
        raise CalibrationError("the tables hold no operator that can be fitted", where="tables")
    engines = sorted({p["engine"] for p in tables.provenance if p.get("engine")})
    engine = ", ".join(e for e in engines if e.startswith("vLLM")) or ", ".join(engines)
    return Calibration(
        name=name or f"{gpu}, {engine}".strip(", "),
        gpu=gpu,
        engine=engine,
        ceilings=ceilings,
        provenance=tuple(dict(p) for p in tables.provenance),
        fits=fits,
        collectives=collectives,
        collective_errors=errors,
        stream=stream,
    )


def _wanted(only: Collection[str], operator: str, key: str) -> bool:
    return operator in only or f"{operator} {key}" in only


def parts(frame: pd.DataFrame, recipe: Recipe) -> list[tuple[str, pd.DataFrame]]:
    """(key, rows) for each fit of an operator, in a fixed order."""
    found = []
    if "windowed" in recipe.split:
        frame = frame.assign(windowed=np.where(frame["window"] > 0, "windowed", ""))
    for values, rows in frame.groupby(list(recipe.split), sort=True):
        label = "/".join(str(v) for v in values if v != "")
        rows = with_twin(rows.reset_index(drop=True), frame, recipe.twins.get(label), recipe.columns)  # noqa: PLW2901
        found.append((label, rows.sort_values([*recipe.columns]).reset_index(drop=True)))
    return found


def one(operator: str, key: str, recipe: Recipe, ceilings: Ceilings, rows: pd.DataFrame) -> Fit:
    dtype = str(rows["dtype"].iloc[0])
    served = rows["source"].str.startswith(SERVED).to_numpy()
    cold = recipe.cold(recipe.points(rows, dtype), gpu_seconds(rows, recipe), ceilings)
    rows = rows.assign(weight=np.where(served & ~cold.all(), STANDS_FOR, 1.0)).loc[cold | served].reset_index(drop=True)
    found: Fitted = fit(recipe, ceilings, rows, dtype)
    coordinates = recipe.law.coordinates(found.constants, recipe.points(rows, dtype))
    return Fit(
        operator=operator,
        key=key,
        number=found.number,
        constants=found.constants,
        surfaces=found.surfaces,
        held_out=found.held_out,
        extent={k: (float(v.min()), float(v.max())) for k, v in coordinates.items()},
        kernels=_kernels(rows),
        forest=found.forest,
    )


def _kernels(rows: pd.DataFrame) -> dict[str, int]:
    """Measured kernels and their points; a name for those that only timed the host."""
    names = rows["kernel"] + np.where(rows["host"], HOST, "") if "host" in rows else rows["kernel"]
    return {str(k): int(v) for k, v in names.value_counts().sort_index().items()}


def without_projections(
    frames: Mapping[str, pd.DataFrame], operator: str, gemm: Fit, ceilings: Ceilings
) -> pd.DataFrame | None:
    """An MLA module's seconds less those of its three projections as the GEMM fit prices them, never under a tenth."""
    frame = frames.get(operator.replace("latent", "mla"))
    if frame is None:
        return None
    heads = frame["heads"].to_numpy(float)
    per_sequence = frame.get("new", 1)
    tokens = (frame["batch"] * per_sequence).to_numpy(float)
    same = np.ones_like(heads)
    a = DEEPSEEK
    assert a.q_lora_rank is not None
    projections = np.zeros_like(heads)
    for n, k in (
        (same * (a.q_lora_rank + a.latent_dim), same * DEEPSEEK_HIDDEN),
        (heads * (a.qk_nope_head_dim + a.qk_rope_head_dim), same * a.q_lora_rank),
        (same * DEEPSEEK_HIDDEN, heads * a.v_head_dim),
    ):
        projections += gemm.seconds(ceilings, gemm_points(tokens, n, k, 2.0))
    whole = frame["seconds"].to_numpy(float)
    return frame.assign(whole=whole, seconds=np.maximum(whole - projections, 0.1 * whole))


def network(
    frames: Mapping[str, pd.DataFrame],
) -> tuple[dict[tuple[str, int], Collective], dict[str, HeldOut]]:
    """Collectives as measured, made never to fall with size. Error: each inner size from all the others."""
    found: dict[tuple[str, int], Collective] = {}
    errors: dict[str, HeldOut] = {}
    for operator in NETWORK:
        frame = frames.get(operator)
        if frame is None and operator == "all_reduce":
            frame = frames.get("nccl_all_reduce")
        if frame is None:
            continue
        misses: list[float] = []
        for number in sorted({int(r) for r in frame["ranks"]}):
            rows = frame.loc[frame["ranks"] == number].sort_values("size_bytes")
            size, seconds = rows["size_bytes"].to_numpy(float), rows["seconds"].to_numpy(float)
            for i in range(1, len(size) - 1):
                guess = np.interp(size[i], np.delete(size, i), rising(np.delete(seconds, i)))
                misses.append(abs(guess / seconds[i] - 1.0))
            found[operator, number] = Collective(
                operator, number, tuple(size.tolist()), tuple(float(f"{s:.5g}") for s in rising(seconds))
            )
        if misses:
            errors[operator] = HeldOut.of(np.asarray(misses), len(misses), len(misses))
    return found, errors


def rising(seconds: Floats) -> Floats:
    """The nearest times that never fall, in absolute deviation: pooled neighbours, each pool at its median (of an even
    number the lower one), so that one hiccup of a benchmark does not raise every size beyond it.

    Pool adjacent violators with medians: Robertson, Wright and Dykstra, Order Restricted Statistical Inference, 1988.
    """
    pools: list[list[float]] = []
    for value in seconds.tolist():
        pools.append([value])
        while len(pools) > 1 and median_low(pools[-2]) > median_low(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    return np.concatenate([np.full(len(pool), median_low(pool)) for pool in pools])


def elementwise(frame: pd.DataFrame | None, ceilings: Ceilings) -> Stream | None:
    """Launch and streaming rates of norms, activations and the like, in relative error; one kind held out at a time."""
    if frame is None or len(frame) < 10:
        return None
    reach = 0.5 * ceilings.cache_bytes
    names = sorted(frame["name"].unique())
    seconds = frame["seconds"].to_numpy(float)
    predicted = np.full(len(frame), np.nan)
    for name in names if len(names) > 1 else []:
        test = (frame["name"] == name).to_numpy()
        predicted[test] = _terms(frame.loc[test], reach, ceilings) @ _rates(frame.loc[~test], reach, ceilings)
    launch, cached, streamed = _rates(frame, reach, ceilings)
    e = np.abs(predicted / seconds - 1.0)
    e = e[np.isfinite(e)]
    held_out = HeldOut.of(e, len(names), len(names)) if len(e) else None
    share, near = float(f"{1.0 / streamed:.4g}"), float(f"{1.0 / cached:.4g}")
    return Stream(float(f"{launch:.4g}"), share, near, reach, held_out, str(frame["source"].iloc[0]))


def _terms(frame: pd.DataFrame, reach: float, ceilings: Ceilings) -> Floats:
    """What a rate multiplies: launches, and seconds at full bandwidth of the bytes within the cache and beyond."""
    kernels, size = frame["kernels"].to_numpy(float), frame["bytes"].to_numpy(float)
    near = np.minimum(size, reach * kernels)
    return np.stack([kernels, near / ceilings.bandwidth, (size - near) / ceilings.bandwidth], axis=1)


def _rates(frame: pd.DataFrame, reach: float, ceilings: Ceilings) -> Floats:
    """(seconds per launch, slowness in the cache, slowness beyond), by reweighted relative least squares."""
    seconds = frame["seconds"].to_numpy(float)
    terms, unit = _terms(frame, reach, ceilings), np.array([1e-6, 1.0, 1.0])
    scale, found = 1.0 / seconds, unit
    for _ in range(20):
        found = nnls(terms * scale[:, None] * unit, seconds * scale)[0] * unit
        scale = 1.0 / seconds / np.sqrt(np.maximum(np.abs(terms @ found / seconds - 1.0), 0.02))
    launch, cached, streamed = np.maximum(found, [1e-8, 0.1, 0.1])
    streamed = max(streamed, 1.0) if terms[:, 2].any() else max(cached, 1.0)
    return np.array([launch, min(cached, streamed) if terms[:, 1].any() else streamed, streamed])
