from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from simulator.cli.main import app
from simulator.planning.compare import Comparison, Difference, compare, read_run
from simulator.scenario.load import anchored
from simulator.scenario.run import run
from simulator.scenario.source import override, parse_source

SCENARIO = """
name: small
model: Qwen/Qwen2.5-0.5B
hardware: A100
workload:
  synthetic:
    num_requests: 600
    arrivals: {process: poisson, rate: 30}
    lengths: {prompt: {distribution: uniform, low: 200, high: 2000}, output: {distribution: uniform, low: 5, high: 60}}
slo: {ttft_s: 0.06, tpot_s: 0.02}
"""


def written(folder: Path, *settings: str) -> Path:
    scenario = anchored(override(parse_source(SCENARIO), list(settings)))
    run(scenario).write(folder, report=False)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("runs")
    return {
        "a": written(root / "a"),
        "again": written(root / "again"),
        "slower": written(root / "slower", "hardware.clock=0.6"),
        "other": written(root / "other", "seed=1"),
        "three": written(root / "three", "seed=3"),
        "later": written(root / "later", "workload.transforms=[{scale_rate: 0.5}]"),
        "fewer": written(root / "fewer", "workload.synthetic.num_requests=500"),
    }


def of(found: Comparison, metric: str) -> Difference:
    return next(row for row in found.rows if row.metric == metric)


def test_a_run_does_not_differ_from_itself(folders: dict[str, Path]) -> None:
    found = compare(read_run(folders["a"]), read_run(folders["again"]))
    assert found.paired and found.pairing == "paired: the same requests at the same times"
    for row in found.rows:
        assert row.difference == 0.0, row
        if row.low is not None:
            assert (row.low, row.high, row.verdict) == (0.0, 0.0, "no difference seen")


def test_a_lower_clock_is_seen_request_by_request(folders: dict[str, Path]) -> None:
    a, b = read_run(folders["a"]), read_run(folders["slower"])
    found = compare(a, b)
    row = of(found, "ttft_s mean")
    truth = (b.requests["ttft_s"] - a.requests["ttft_s"]).mean()
    assert row.difference == pytest.approx(truth) and truth > 0
    assert row.low is not None and row.high is not None and 0 < row.low < truth < row.high
    assert row.verdict == "B worse"
    assert of(found, "share within SLO").verdict == "B worse"
    assert of(found, "throughput.request_per_s").low is None  # one run of each tells no interval


def test_pairing_makes_the_interval_narrower(folders: dict[str, Path]) -> None:
    """What a pair shares (its lengths, its neighbours) cancels out; as strangers the same runs tell less."""
    a, b = read_run(folders["a"]), read_run(folders["slower"])
    together = of(compare(a, b), "e2e_s mean")
    strangers = type(b)(b.folder, b.requests.iloc[:-1], b.summary, b.provenance)
    apart = of(compare(a, strangers), "e2e_s mean")
    assert together.high is not None and together.low is not None and apart.high is not None and apart.low is not None
    assert together.high - together.low < 0.75 * (apart.high - apart.low)


def test_it_says_when_runs_are_not_paired(folders: dict[str, Path]) -> None:
    other = compare(read_run(folders["a"]), read_run(folders["other"]))
    assert not other.paired and other.pairing == "not paired: the requests differ in prompt_tokens"
    fewer = compare(read_run(folders["a"]), read_run(folders["fewer"]))
    assert not fewer.paired and fewer.pairing == "not paired: 600 and 500 requests"
    later = compare(read_run(folders["a"]), read_run(folders["later"]))
    assert later.paired and "arriving at other times" in later.pairing


def test_equal_designs_with_other_seeds_are_not_told_apart(folders: dict[str, Path]) -> None:
    found = compare(read_run(folders["other"]), read_run(folders["three"]))
    assert of(found, "ttft_s mean").verdict == "no difference seen"


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Requests that depend on their neighbours (an autoregression) with a known mean difference of 0."""
    from simulator.planning.compare import RESAMPLES, _draws, _resampled

    rng, hits, trials = np.random.default_rng(5), 0, 200
    for _ in range(trials):
        noise = rng.standard_normal(2000)
        series = np.empty(2000)
        last = 0.0
        for i, step in enumerate(noise):
            last = series[i] = 0.8 * last + step
        spread = _resampled(series, None, _draws(rng, len(series)))
        low, high = np.percentile(spread, [2.5, 97.5])
        hits += low <= 0.0 <= high
    assert len(spread) == RESAMPLES
    assert 0.88 <= hits / trials <= 0.99


def test_the_command_prints_a_table_and_json(folders: dict[str, Path]) -> None:
    shown = CliRunner().invoke(app, ["compare", str(folders["a"]), str(folders["slower"])])
    assert shown.exit_code == 0
    assert "Paired: the same requests at the same times; 600 compared." in shown.stdout
    assert "ttft_s p99" in shown.stdout and "B worse" in shown.stdout
    as_json = CliRunner().invoke(app, ["compare", str(folders["a"]), str(folders["slower"]), "--json"])
    assert json.loads(as_json.stdout)["paired"] is True


def test_wrong_folders_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    for wrong in (tmp_path / "nothing", tmp_path):
        shown = CliRunner().invoke(app, ["compare", str(folders["a"]), str(wrong)])
        assert shown.exit_code == 2
        assert str(wrong) in shown.stderr.replace("\n", "")
    (tmp_path / "torn").mkdir()
    for name in ("requests.parquet", "summary.json", "provenance.json"):
        (tmp_path / "torn" / name).write_text("{", encoding="utf-8")
    assert CliRunner().invoke(app, ["compare", str(folders["a"]), str(tmp_path / "torn")]).exit_code == 2
