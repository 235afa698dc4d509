"""A row whose measurement is a system's own search."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.core.errors import ScenarioError
from simulator.survey.evaluate import evaluate
from simulator.survey.load import read_system

ROW = """
system: Any size
claim: larger is better
paper: none
common:
  model: Qwen/Qwen2.5-0.5B
  hardware: L4
  engine: {max_model_len: 4096}
  slo: {ttft_s: 0.5}
baseline:
  mix:
    - workload: &part {synthetic: {num_requests: 100, arrivals: {process: poisson, rate: 30}, lengths: {prompt: 300, output: 20}}}
    - workload: *part
measure:
  found: {of: baseline, optimise: {optimiser: "tests.planning.optimisers.any_size:AnySize", options: {sizes: [1, 4]}, top: 1}}
band:
  - {name: belief, value: "found[0].belief", low: 40, high: 40}
  - {name: choices, value: "count(found.size > 0)", low: 2, high: 2}
  - {name: gap, value: "abs(found[0].simulated / found[0].belief - 1 - found[0].gap)", high: 1.0e-9}
  - {name: the second was not simulated, value: "found[1].simulated", low: 0}
"""


def row(folder: Path, old: str = "", new: str = "") -> Path:
    path = folder / "any.yaml"
    path.write_text(ROW.replace(old, new) if old else ROW, encoding="utf-8")
    return path


def test_the_candidates_of_an_optimiser_are_held_against_a_band(tmp_path: Path) -> None:
    found = evaluate(read_system(row(tmp_path)))
    assert [check.within for check in found.checks] == [
        True,
        True,
        True,
        False,
    ]  # what was not measured is never within
    assert found.measured["found"][0]["design"] == "4 sequences" and found.calibration


def test_mistakes_are_answered_when_the_row_is_read(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match=r"(?s)measure.found.optimise.options.size.*Did you mean 'sizes'"):
        read_system(row(tmp_path, "sizes:", "size:"))
    with pytest.raises(ScenarioError, match="with 'optimise' there are no"):
        read_system(row(tmp_path, "top: 1}", "top: 1}, rate: 3"))
