"""Block rates from batches: what was put into a table comes out of the fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from profiler.blocks.__main__ import errors, filling, fitted, main, packed, tail_errors
from profiler.blocks.tables import mixed_batches, uneven_batches
from simulator.cost.flash_attention import MEASURED, Blocks, Rates, blocks_of
from simulator.cost.shapes import attention_shape
from simulator.hardware.gpu import gpu
from simulator.model.catalogue import model

SHAPE = attention_shape(model("llama-3.1-8b").layers[0].attention, 1, "bfloat16", 2.0)
MADE = replace(MEASURED, block_s=4e-6, empty_s=0.5e-6, packed_s=25e-9, late=0.2, l2_full=0.4, l2_range=1.2)
SHARED = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "kernels" / "llmservingsim"


def law(rates: Rates) -> Blocks:
    blocks = blocks_of(gpu("rtxpro6000"), SHAPE, rates)
    assert blocks is not None
    return blocks


def alone(decodes: int, each: int) -> float:
    return 4e-6 + decodes * (each + 1) * SHAPE.bytes_per_context / 1.5e12


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Tables as LLMServingSim writes them, of a GPU whose blocks run at rates of ours."""
    path = tmp_path / "RTXPRO6000-Llama-3.1-8B-tp1"
    path.mkdir()
    rows = []
    for decodes in (16, 64, 128, 256):
        for each in (16, 128, 512, 1024, 2048, 4096):
            rows.append((0, 0, decodes, each, alone(decodes, each)))
            for chunk in (16, 512, 2048):
                chunk_s = 6e-6 + chunk * 1e-7
                added = law(MADE).beside(decodes)(alone(decodes, each), decodes * (each + 1), 0, 0, chunk, chunk_s)
                rows.append((chunk, 0, decodes, each, chunk_s + added))
    rows += [(chunk, 0, 0, 0, 6e-6 + chunk * 1e-7) for chunk in (16, 512, 2048)]
    frame = pd.DataFrame(rows, columns=["prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us"])
    frame.assign(time_us=frame["time_us"] * 1e6).to_csv(path / "attention.csv.gz", index=False)
    uneven = []
    for decodes, long, short in ((64, 1, 1024), (64, 8, 2048), (128, 2, 1024), (256, 1, 4096), (16, 1, 4096)):
        lengths = np.array([4 * short + 1] * long + [short + 1] * (decodes - long))
        mean, equal_s = int(lengths.mean()), alone(decodes, int(lengths.mean()))
        ahead = 4 * short + 1 - (lengths**2).sum() / lengths.sum() - lengths.sum() / 188
        slow_s = equal_s + max(ahead, 0.0) * MADE.packed_s
        uneven.append((decodes, long, 0, short, 4 * short, mean - 1, 3e6 * equal_s, 3e6 * slow_s))
    columns = ["n", "nb", "pc", "kvs", "kv_big", "kv_mean", "t_mean_us", "t_skew_us"]
    pd.DataFrame(uneven, columns=columns).to_csv(path / "skew.csv.gz", index=False)
    return path


def test_the_rates_of_a_table_are_found(folder: Path) -> None:
    rows = mixed_batches(folder)
    assert len(rows) == 72
    assert np.abs(errors(law(MEASURED), rows)).mean() > 0.05
    found = fitted(law, rows)
    assert np.abs(errors(law(found), rows)).mean() < 0.005
    assert found.block_s == pytest.approx(4e-6, rel=0.05)
    assert found.empty_s == pytest.approx(0.5e-6, rel=0.05)


def test_the_tail_is_read_from_batches_that_fill_the_gpu(folder: Path) -> None:
    rows = uneven_batches(folder)
    many = filling(law(MEASURED), rows)
    assert [row.decodes for row in many] == [64, 64, 128, 256]  # 16 x 8 blocks are split
    assert packed(law(MEASURED), many) == pytest.approx(25e-9, rel=0.01)
    assert np.abs(tail_errors(law(MEASURED), 25e-9, many)).max() < 1e-3


def test_a_folder_without_a_name_or_a_column_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([]) == 2
    nameless = tmp_path / "tables"
    nameless.mkdir()
    assert main([str(nameless)]) == 2
    (folder / "skew.csv.gz").unlink()
    assert main([str(folder)]) == 2
    pd.DataFrame({"n": [1]}).to_csv(folder / "skew.csv.gz", index=False)
    assert main([str(folder)]) == 2
    assert "'nb' is missing" in capsys.readouterr().err


def test_the_shipped_rates_are_those_of_the_published_tables() -> None:
    folder = SHARED / "RTXPRO6000-Llama-3.1-8B-tp1"
    if not folder.is_dir():
        pytest.skip("the measured tables are not here")
    many = filling(law(MEASURED), uneven_batches(folder))
    assert packed(law(MEASURED), many) == pytest.approx(MEASURED.packed_s, rel=0.01)
    assert np.abs(tail_errors(law(MEASURED), MEASURED.packed_s, many)).mean() < 0.015
    few = [row for i, row in enumerate(mixed_batches(folder)) if row.context <= 600_000 and i % 10 == 0]
    assert np.abs(errors(law(MEASURED), few)).mean() < 0.1
