"""What all optimisers share: the plan's file, the answer, belief against simulation, and nothing is run twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import simulator
from simulator.cli.main import app
from simulator.core.errors import ScenarioError
from simulator.planning.optimisers import OPTIMISERS
from simulator.planning.optimisers.answer import Optimised
from simulator.planning.optimisers.file import OptimiserFile
from simulator.planning.probe import Bench
from simulator.planning.question import read_question
from simulator.scenario.load import load

PLANS = Path(__file__).parents[3] / "scenarios" / "plans" / "optimisers"
PLAN = """
optimiser: tests.planning.optimisers.any_size:AnySize
options: {{{options}}}
replications: 2
{more}
scenario:
  model: Qwen/Qwen2.5-0.5B
  hardware: L4
  engine: {{max_model_len: 4096}}
  workload:
    synthetic:
      num_requests: 200
      arrivals: {{process: poisson, rate: 30}}
      lengths: {{prompt: 300, output: 20}}
  slo: {{ttft_s: 0.5}}
"""


def plan_file(folder: Path, options: str = "sizes: [1, 4]", more: str = "top: 2") -> Path:
    path = folder / "any.yaml"
    path.write_text(PLAN.format(options=options, more=more), encoding="utf-8")
    return path


def test_the_answer_holds_belief_against_simulation(tmp_path: Path) -> None:
    found = simulator.plan(plan_file(tmp_path))
    assert isinstance(found, Optimised)
    assert found.best is not None and found.best.label == "4 sequences" and found.belief == 40.0
    assert found.simulated is not None and found.gap == pytest.approx(found.simulated / 40.0 - 1.0)
    first, second, none = found.rows
    assert first["simulated"] > second["simulated"] > 0  # on common random numbers
    assert (none["rank"], none["simulated"], none["reason"]) == (None, None, "nobody would be served.")
    assert "proposes 4 sequences and believes in 40 requests/s within the SLO; simulated it is" in found.answer
    assert found.second == "Of the 2 candidates that were simulated it is the best by requests/s within the SLO."
    bench = Bench(found.best.design.scenario)  # type: ignore[union-attr]
    assert all(bench.probe(0.9 * found.simulated, 1, seed).meets for seed in (0, 1))


def test_the_folder_holds_the_answer_and_a_scenario_to_run(tmp_path: Path) -> None:
    path, out = plan_file(tmp_path, more="top: 1"), tmp_path / "out"
    result = CliRunner().invoke(app, ["plan", str(path), "--out", str(out), "--jobs", "1", "--json"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["feasible"] and said["gap"] == pytest.approx(said["simulated"] / said["belief"] - 1.0)
    assert {path.name for path in out.iterdir()} == {
        "plan.json", "designs.csv", "report.html", "scenario.yaml", "runs.jsonl"
    }  # fmt: skip
    assert load(out / "scenario.yaml").engine.max_num_seqs == 4
    page = (out / "report.html").read_text(encoding="utf-8")
    assert said["answer"] in page and "nobody would be served." in page and "<script" not in page
    before = (out / "runs.jsonl").read_bytes()
    again = CliRunner().invoke(app, ["plan", str(path), "--out", str(out), "--jobs", "1"])
    assert again.exit_code == 0 and said["answer"] in again.stdout.replace("\n", " ")
    assert (out / "runs.jsonl").read_bytes() == before  # nothing was run twice


@pytest.mark.parametrize(
    ("options", "more", "words"),
    [
        ("size: [1]", "", "unknown field 'size'.*Did you mean 'sizes'"),
        ("sizes: [0]", "", "options.sizes.0"),
        ("", "find: cheapest", "unknown field 'find'"),
        ("", "tops: 2", "unknown field 'tops'.*Did you mean 'top'"),
    ],
)
def test_a_mistake_is_answered_with_its_place(tmp_path: Path, options: str, more: str, words: str) -> None:
    with pytest.raises(ScenarioError, match=f"(?s){words}"):
        simulator.plan(plan_file(tmp_path, options, more))


def test_an_unknown_optimiser_is_answered_with_the_nearest(tmp_path: Path) -> None:
    path = plan_file(tmp_path)
    path.write_text(path.read_text().replace("tests.planning.optimisers.any_size:AnySize", "melenge"), encoding="utf-8")
    with pytest.raises(ScenarioError, match=r"(?s)any.yaml:2: optimiser.*Did you mean 'melange'"):
        simulator.plan(path)
    path.write_text(path.read_text().replace("melenge", "pathlib:Path"), encoding="utf-8")
    with pytest.raises(ScenarioError, match="is not an optimiser"):
        simulator.plan(path)


@pytest.mark.parametrize("path", sorted(PLANS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_questions_that_ship_can_be_asked(path: Path) -> None:
    file = read_question(path)
    assert isinstance(file, OptimiserFile) and file.kind is OPTIMISERS.get(path.stem)


def test_every_optimiser_says_what_it_decides() -> None:
    for name, kind in OPTIMISERS.items():
        for word in ("Decides:", "Why it helps:", "Limits:", "Reference:"):
            assert word in (kind.__doc__ or ""), (name, word)
