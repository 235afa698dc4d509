"""Rows that time the host are told from those that time a kernel, and the kernel's own time is priced all the same."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest

from profiler.fit import constants
from profiler.fit.boost import ForestSpec
from profiler.fit.calibrate import calibrate, parts
from profiler.fit.operators import RECIPES
from profiler.tables.columns import Tables
from simulator.core.errors import CalibrationError
from simulator.cost.kernels import Ceilings
from simulator.cost.laws import GEMM, gemm_points

CEILINGS = Ceilings(132, {"bf16": 989e12, "fp8": 1979e12}, 3.35e12)
RECIPE = RECIPES["gemm"]
SIZES = (256, 1024, 4096, 16384, 32768)


@pytest.fixture(autouse=True)
def small_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """These data hold no choice of kernels to learn, and their constants are those that a fit starts from."""
    monkeypatch.setattr(constants, "EVALUATIONS", 2)
    monkeypatch.setattr(constants, "REFINE", 2)
    monkeypatch.setitem(dict_of(RECIPES), "gemm", replace(RECIPE, forest=ForestSpec(20, 4)))


def dict_of(recipes: object) -> dict[str, object]:
    assert isinstance(recipes, dict)
    return recipes


def frames(host_s: float, ratio: float = 1.2) -> tuple[pd.DataFrame, np.ndarray]:
    """fp8 in a graph, and fp8_block: ``ratio`` times as long, behind a host that takes ``host_s`` a call (seconds, and
    those without the host).
    """
    rows = pd.DataFrame(
        [{"m": m, "n": n, "k": k} for m, n, k in product((1, 8, 9, 64, 128, 512, 2048, 4096), SIZES, SIZES)]
    )
    m, n, k = (rows[c].to_numpy(float) for c in "mnk")
    seconds = GEMM.seconds(dict(GEMM.start), CEILINGS, "fp8", gemm_points(m, n, k, 1.0))
    wait = host_s * np.random.default_rng(1).uniform(0.9, 1.2, len(rows))
    plain = rows.assign(seconds=seconds, dtype="fp8", kernel="fp8 kernel")
    block = rows.assign(seconds=np.maximum(ratio * seconds, wait), dtype="fp8_block", kernel="block kernel")
    return pd.concat([plain, block], ignore_index=True).assign(source="made"), ratio * seconds


def part_of(frame: pd.DataFrame) -> pd.DataFrame:
    return dict(parts(frame, RECIPE))["fp8_block"]


def test_kernels_behind_a_slow_host_are_priced_as_without_it() -> None:
    frame, truth = frames(80e-6)
    found = calibrate(Tables({"gemm": frame}), "H100-SXM", CEILINGS, only=("gemm fp8_block",))
    fit = found.fits["gemm", "fp8_block"]
    rows = frame.loc[frame["dtype"] == "fp8_block"]
    hidden = truth < 40e-6
    assert hidden.mean() > 0.5  # most of the table
    priced = fit.seconds(CEILINGS, RECIPE.points(rows, "fp8_block"))
    assert np.abs(priced / truth - 1.0)[hidden].mean() < 0.1
    assert fit.held_out is not None
    assert fit.held_out.points < (~hidden).sum() + 1  # the error counts what timed a kernel
    assert fit.held_out.mean < 0.06
    assert sum(fit.kernels.values()) == len(rows)
    assert [name for name in fit.kernels if "host" in name]


def test_where_nothing_waits_every_row_counts() -> None:
    frame, _ = frames(1e-6)
    assert not part_of(frame)["host"].any()


def test_a_hiccup_is_no_kernel_either_but_a_slow_shape_is() -> None:
    frame, _ = frames(80e-6)
    block = frame["dtype"] == "fp8_block"
    one = frame.index[block & (frame["m"] == 9) & (frame["n"] == 256) & (frame["k"] == 256)]
    slow = block & (frame["n"] == 256) & (frame["k"] == 32768)
    frame.loc[one, "seconds"] = 400e-6
    frame.loc[slow, "seconds"] = frame.loc[slow, "seconds"] + 300e-6
    part = part_of(frame)
    assert part.loc[(part["m"] == 9) & (part["n"] == 256) & (part["k"] == 256), "host"].all()
    assert not part.loc[(part["n"] == 256) & (part["k"] == 32768), "host"].any()


def test_a_table_that_only_timed_its_host_gives_no_fit() -> None:
    frame, _ = frames(10.0)
    with pytest.raises(CalibrationError, match="no operator"):
        calibrate(Tables({"gemm": frame}), "H100-SXM", CEILINGS, only=("gemm fp8_block",))


def test_one_format_can_be_fitted_alone() -> None:
    frame, _ = frames(1e-6)
    tables = Tables({"gemm": frame})
    first = calibrate(tables, "H100-SXM", CEILINGS, only=("gemm fp8",))
    assert set(first.fits) == {("gemm", "fp8")}
    both = calibrate(tables, "H100-SXM", CEILINGS, only=("gemm fp8_block",), kept=first)
    assert set(both.fits) == {("gemm", "fp8"), ("gemm", "fp8_block")}
    assert both.fits["gemm", "fp8"] is first.fits["gemm", "fp8"]
