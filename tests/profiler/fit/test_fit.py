"""A fit recovers a law that made the data, and its stated error is one on shapes it has not seen."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from profiler.fit.calibrate import calibrate, network, parts, rising
from profiler.fit.command import write
from profiler.fit.crossval import fit, folds_by_shape
from profiler.fit.operators import RECIPES
from profiler.fit.solve import SurfaceSpec, solve
from profiler.tables.columns import Tables
from simulator.core.errors import CalibrationError
from simulator.cost.calibration import read_calibration, to_json
from simulator.cost.correction import Surface, correction, monotone
from simulator.cost.kernels import Ceilings
from simulator.cost.laws import DECODE, GEMM, decode_points, gemm_points

CEILINGS = Ceilings(132, {"bf16": 989e12, "fp8": 1979e12}, 3.35e12)
TRUE_GEMM = dict(GEMM.start) | {"launch_s": 3e-6, "memory": 1.2, "last_wave": -2.0}


def gemm_frame(ms: tuple[int, ...] = (1, 8, 64, 128, 200, 512, 2048), bend: float = 0.1) -> pd.DataFrame:
    """Seconds of a known law, bent smoothly by up to ``bend``."""
    sizes = (256, 512, 1024, 2048, 4096, 8192, 16384)
    rows = pd.DataFrame([{"m": m, "n": n, "k": k} for m, n, k in product(ms, sizes, sizes)])
    m, n, k = (rows[c].to_numpy(float) for c in "mnk")
    seconds = GEMM.seconds(TRUE_GEMM, CEILINGS, "bf16", gemm_points(m, n, k, 2.0))
    seconds = seconds * np.exp(bend * np.sin(0.7 * np.log(n)) * np.cos(0.5 * np.log(k)))
    return rows.assign(seconds=seconds, dtype="bf16", kernel="made", source="made")


def test_a_known_law_is_recovered_on_shapes_that_were_left_out() -> None:
    found = fit(RECIPES["gemm"], CEILINGS, gemm_frame(), "bf16")
    assert found.held_out is not None
    assert found.held_out.shapes == 49
    assert found.held_out.mean < 0.02
    assert found.held_out.mean < found.physics_alone  # the correction earns its place


def test_folds_never_divide_a_shape() -> None:
    frame = gemm_frame()
    fold = folds_by_shape(frame, ("n", "k"))
    together = frame.assign(fold=fold).groupby(["n", "k"])["fold"].nunique()
    assert (together == 1).all()
    assert len(set(fold)) == 5


def test_one_odd_shape_is_an_error_that_a_memory_of_it_would_hide() -> None:
    """Its twice longer times follow from nothing around it: held out, all of its points must miss by about half."""
    frame = gemm_frame(bend=0.0)
    odd = (frame["n"] == 2048) & (frame["k"] == 2048)
    frame["seconds"] = frame["seconds"].where(~odd, 2.0 * frame["seconds"])
    found = fit(RECIPES["gemm"], CEILINGS, frame, "bf16")
    plain = fit(RECIPES["gemm"], CEILINGS, gemm_frame(bend=0.0), "bf16")
    assert found.held_out is not None
    assert plain.held_out is not None
    assert found.held_out.mean - plain.held_out.mean > 0.8 * 0.5 / 49


def test_packing_of_heads_is_found_out() -> None:
    """A kernel with a thread block per query head, and one per KV head, are told apart by their times."""
    rows = [
        {"batch": b, "context": c, "heads": kv * g, "kv_heads": kv, "head_dim": 128, "window": 0, "kv_dtype": "bf16"}
        for b, c, kv, g in product((1, 4, 16, 64, 256, 1024), (16, 128, 1024, 8192), (1, 2, 4, 8), (1, 4, 8))
    ]
    frame = pd.DataFrame(rows).assign(dtype="bf16", kernel="made", source="made")
    points = RECIPES["decode_attention"].points(frame, "bf16")
    for packed in (0.0, 1.0):
        seconds = DECODE.seconds(dict(DECODE.start) | {"packed": packed}, CEILINGS, "bf16", points)
        [(key, part)] = parts(frame.assign(seconds=seconds), RECIPES["decode_attention"])
        found = fit(RECIPES["decode_attention"], CEILINGS, part, "bf16")
        assert key == "128/bf16"
        assert found.constants["packed"] == packed
        assert found.held_out is not None
        assert found.held_out.mean < 0.03


def test_times_of_operands_that_stay_in_the_cache_are_no_engines() -> None:
    cached = replace(CEILINGS, cache_bytes=50e6)
    batch, context = np.array([1.0, 16.0, 256.0]), np.array([16.0, 1024.0, 8192.0])  # 64 kB, 67 MB, 8.6 GB of keys
    ones = np.ones(3)
    points = decode_points(batch, context, 32 * ones, 8 * ones, 128 * ones, 0 * ones, kv_bytes=2.0)
    seconds = np.maximum(points["size"] / 3.35e12, 12e-6)
    recipe = RECIPES["decode_attention"]
    assert recipe.cold(points, seconds, cached).tolist() == [True, False, True]
    assert recipe.cold(points, seconds, CEILINGS).all()


def test_a_fit_is_the_same_every_time_and_survives_its_file(tmp_path: Path) -> None:
    tables = Tables({"gemm": gemm_frame()}, [{"source": "made", "licence": "none", "engine": "VLLM 0"}])
    first, second = (calibrate(tables, "H100-SXM", CEILINGS) for _ in range(2))
    assert json.dumps(to_json(first)) == json.dumps(to_json(second))
    write(first, tmp_path / "c.json")
    read = read_calibration(tmp_path / "c.json")
    assert json.dumps(to_json(read)) == json.dumps(to_json(first))
    x = gemm_points(np.array([7.0]), np.array([3000.0]), np.array([5000.0]), 2.0)
    assert read.fits["gemm", "bf16"].seconds(CEILINGS, x) == pytest.approx(
        first.fits["gemm", "bf16"].seconds(CEILINGS, x)
    )


def test_products_of_a_handful_of_matrices_say_nothing_of_others() -> None:
    frame = gemm_frame(ms=tuple(range(1, 60)))
    few = frame.loc[(frame["n"] <= 1024) & (frame["k"] <= 512)]  # six shapes of 59 token counts
    with pytest.raises(CalibrationError, match="no operator"):
        calibrate(Tables({"gemm": few}), "H100-SXM", CEILINGS)


def test_tables_that_hold_nothing_to_fit_are_refused() -> None:
    with pytest.raises(CalibrationError, match="no operator"):
        calibrate(Tables({"gemm": gemm_frame().head(10)}), "H100-SXM", CEILINGS)


def test_surfaces_follow_a_plane_and_keep_its_edge_outside() -> None:
    rng = np.random.default_rng(0)
    x = {"a": rng.uniform(0, 4, 400), "b": rng.uniform(0, 4, 400)}
    spec = SurfaceSpec(("a", "b"), ((0.0, 1.0, 2.0, 3.0, 4.0),) * 2, (1.0, 1.0), ridge=1e-6)
    surfaces = solve([spec], x, 0.3 * x["a"] - 0.1 * x["b"])
    at = {"a": np.array([1.5, 4.0, 9.0]), "b": np.array([2.5, 0.0, -3.0])}
    assert correction(surfaces, at).tolist() == pytest.approx([0.2, 1.2, 1.2], abs=0.01)


def test_a_surface_survives_packing() -> None:
    surface = Surface(("a", "b"), ((0.0, 1.0), (0.0, 1.0, 2.0)), np.array([[0.1, -0.2, 0.3], [1.0, 2.0, -3.0]]))
    back = Surface.from_json(json.loads(json.dumps(surface.to_json())))
    assert np.abs(back.values - surface.values).max() <= 2.6e-4  # noqa: PD011 - no data frame
    assert back.knots == surface.knots


def test_monotone_is_nearest_and_leaves_what_already_rises() -> None:
    assert monotone(np.array([1.0, 2.0, 3.0])).tolist() == [1.0, 2.0, 3.0]
    assert monotone(np.array([1.0, 4.0, 1.0, 4.0])) == pytest.approx([1.0, 2.0, 2.0, 4.0])
    assert monotone(np.array([4.0, 1.0, 1.0, 1.0])) == pytest.approx(
        [2.0**0.5] * 4
    )  # one of many moves the others little


def test_monotone_along_both_axes_keeps_to_bounds_that_rise() -> None:
    rng = np.random.default_rng(3)
    bound = np.add.outer(np.arange(9.0), np.arange(12.0)) + 1.0
    both = monotone(monotone(bound * rng.uniform(1.0, 3.0, bound.shape), 0), 1)
    assert (both >= bound * (1 - 1e-12)).all()
    for axis in (0, 1):
        assert (np.diff(both, axis=axis) >= -1e-12 * both.max()).all()


def test_collectives_never_get_faster_with_size() -> None:
    frame = pd.DataFrame({"ranks": 2, "size_bytes": [256.0, 512.0, 1024.0], "seconds": [5e-6, 4e-6, 6e-6]})
    found, errors = network({"all_reduce": frame})
    collective = found["all_reduce", 2]
    assert list(collective.seconds) == [4e-6, 4e-6, 6e-6]
    assert collective.at(2048.0) == pytest.approx(12e-6)  # beyond the table its bytes per second hold
    assert errors["all_reduce"].points == 1


def test_one_hiccup_of_a_benchmark_does_not_slow_every_larger_buffer() -> None:
    seconds = np.array([6.0, 15.0, 6.2, 6.5, 6.9, 8.4, 11.4, 14.9]) * 1e-6
    assert rising(seconds).tolist() == pytest.approx(
        [6e-6, 6.2e-6, 6.2e-6, 6.5e-6, 6.9e-6, 8.4e-6, 11.4e-6, 14.9e-6], rel=0.06
    )
