"""What ships is what the tables give: one small part of one file, fitted again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from profiler.fit.calibrate import calibrate
from profiler.fit.command import ceilings_of
from profiler.fit.shipped import RECIPES, tables_of
from profiler.tables.columns import Tables
from simulator.cost.calibration import read_calibration, shipped
from simulator.hardware.gpu import gpu


def test_every_shipped_file_has_its_recipe() -> None:
    assert set(shipped()) <= {r.gpu for r in RECIPES}


def test_a_shipped_fit_is_reproduced_from_the_tables(shared_data: Path) -> None:
    """Another machine's linear algebra may differ in the last bits, no more."""
    recipe = next(r for r in RECIPES if r.gpu == "A100-SXM-80GB")
    folder = shared_data / "kernels"
    if not (folder / recipe.folder).is_dir():
        pytest.skip("the kernel tables are not on this machine")
    tables = tables_of(recipe, folder)
    few = ("prefill_attention", "all_reduce", "elementwise")
    card = gpu(recipe.gpu)
    part = Tables({op: tables.frames[op] for op in few}, tables.provenance)
    again = calibrate(part, card.name, ceilings_of(card, tables))
    kept = read_calibration(shipped()[card.name])
    for key, fit in again.fits.items():
        twin = kept.fits[key]
        assert fit.held_out is not None
        assert twin.held_out is not None
        assert fit.held_out.mean == pytest.approx(twin.held_out.mean, rel=0.02)
        for own, other in zip(fit.surfaces, twin.surfaces, strict=True):
            assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(own.knots, other.knots, strict=True))
            assert np.abs(own.values - other.values).max() < 0.02  # noqa: PD011 - no data frame
    assert again.collectives == {k: c for k, c in kept.collectives.items() if k[0] == "all_reduce"}
    assert again.stream is not None
    assert kept.stream is not None
    assert (again.stream.launch_s, again.stream.share) == (kept.stream.launch_s, kept.stream.share)
