"""The shipped systems load and state what they must; a quick subset runs; bands are judged as they are written."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from simulator.core.errors import ScenarioError
from simulator.survey.evaluate import evaluate
from simulator.survey.load import SystemFile, merged, overlaid, read_system, system_files, variant

ROOT = Path(__file__).resolve().parents[2]
SYSTEMS = ROOT / "scenarios" / "survey"
FILES = system_files(SYSTEMS)

TINY = """
system: Tiny
claim: twice as fast
paper: none
common:
  model: Qwen/Qwen2.5-0.5B
  hardware: A100
  workload: {synthetic: {num_requests: 20, arrivals: {process: poisson, rate: 2}, lengths: {prompt: 100, output: 20}}}
baseline: {}
proposal: {engine: {tensor_parallel_size: 2}}
measure:
  one: {of: baseline}
  two: {of: proposal, rate: one.rate_twice}
  many: {of: baseline, sweep: {path: workload.synthetic.lengths.output, values: [10, 20]}}
band:
  - {name: finished, value: one.requests.finished, low: 20, high: 20}
  - {name: longer outputs take longer, value: rising(many.latency.e2e_s.mean)}
  - {name: out of reach, value: one.latency.ttft_s.mean / two.latency.ttft_s.mean, low: 50, why: two GPUs are not fifty}
"""


def tiny(folder: Path, text: str = TINY.replace("one.rate_twice", "2 * one.throughput.offered_request_per_s")) -> SystemFile:
    path = folder / "tiny.yaml"
    path.write_text(text, encoding="utf-8")
    return read_system(path)


@pytest.mark.parametrize("file", FILES, ids=[file.name for file in FILES])
def test_every_variant_of_a_shipped_system_is_a_valid_scenario(file: SystemFile) -> None:
    for name in file.system.bodies:
        assert variant(file, name, {}).scenario.name == f"{file.name}-{name}"
    for measure in file.system.measure.values():
        variant(file, measure.of, measure.set)
    unused = set(file.system.bodies) - {measure.of for measure in file.system.measure.values()}
    likes = {body.get("like") for body in file.system.bodies.values()}
    assert unused <= likes, "a variant that nothing runs"


@pytest.mark.parametrize("name", ["distillation", "mqa-gqa"])
def test_a_quick_subset_is_within_its_band(name: str) -> None:
    [file] = system_files(SYSTEMS, [name])
    outcome = evaluate(file)
    assert outcome.verdict == "within band", [check for check in outcome.checks if not check.within]


def test_a_miss_is_a_miss_and_says_why(tmp_path: Path) -> None:
    seen: list[str] = []
    outcome = evaluate(tiny(tmp_path), seen.append)
    assert outcome.verdict == "miss" and seen == ["one", "two", "many"]
    assert [check.within for check in outcome.checks] == [True, True, False]
    assert outcome.checks[2].why == "two GPUs are not fifty" and outcome.checks[0].why == ""
    assert outcome.measured["two"]["rate"] == pytest.approx(2 * 2.0, rel=0.5)
    assert [point["value"] for point in outcome.measured["many"]] == [10, 20]


def test_the_same_file_gives_the_same_numbers(tmp_path: Path) -> None:
    first, again = evaluate(tiny(tmp_path)), evaluate(tiny(tmp_path))
    assert first.checks == again.checks and first.measured == again.measured


def test_formulas_know_the_experience_of_readers(tmp_path: Path) -> None:
    text = TINY.replace("one: {of: baseline}", "one: {of: baseline, values: {qoe: mean(requests.qoe)}}")
    text = text.replace("one.requests.finished, low: 20, high: 20", "one.qoe, low: 1, high: 1")
    text = text.replace("rate: one.rate_twice", "rate: 1.0e+9, set: {engine.max_num_seqs: 1, workload.synthetic.lengths.output: 400}, values: {qoe: mean(requests.qoe)}")
    outcome = evaluate(tiny(tmp_path, text))
    assert outcome.checks[0].within, "an idle engine is faster than its readers"
    assert outcome.measured["two"]["qoe"] < 1, "one by one, some wait longer than a second"


def test_published_prices_replace_the_calibration(tmp_path: Path) -> None:
    text = TINY.replace("one.rate_twice", "0.01").replace(
        "baseline: {}",
        "baseline: {price: {replicas: {source: a paper, prefill: [100, 1, 0], decode: [10, 0, 1], kv_tokens: 1600}}}",
    ).replace("arrivals: {process: poisson, rate: 2}", "arrivals: {process: constant, rate: 0.5}")  # fmt: skip
    outcome = evaluate(tiny(tmp_path, text.replace("engine: {ten", "like: baseline, engine: {ten")))
    assert outcome.measured["one"]["ttft_s"]["mean"] == pytest.approx(0.1 + 100 * 1e-3)  # 100 ms and 1 ms a token
    assert outcome.measured["one"]["tpot_s"]["mean"] == pytest.approx(0.011)
    assert outcome.calibration["replicas"] == "a paper"


def test_parts_of_a_mixed_load_carry_their_labels(tmp_path: Path) -> None:
    text = TINY.replace("one.rate_twice", "3").replace(
        "baseline: {}",
        """baseline:
  mix:
    - {tenant: light, priority: 1, workload: &load {synthetic: {num_requests: 20, arrivals: {process: at_once}, lengths: {prompt: 9, output: 5}}}}
    - {tenant: heavy, workload: *load}""",
    ).replace("one.requests.finished", "one.light").replace("{of: baseline}", "{of: baseline, values: {light: \"count(requests.tenant == 'light')\"}}", 1)  # fmt: skip
    assert evaluate(tiny(tmp_path, text)).checks[0].within


def test_mistakes_are_met_with_the_place(tmp_path: Path) -> None:
    good = TINY.replace("one.rate_twice", "3")
    with pytest.raises(ScenarioError, match=r"tiny.yaml:13: measure.two.of: there is no variant 'propsal'"):
        tiny(tmp_path, good.replace("two: {of: proposal", "two: {of: propsal"))
    with pytest.raises(ScenarioError, match=r"nothing is measured as 'tow'.*\n.*Did you mean 'two'"):
        tiny(tmp_path, good.replace("/ two.latency", "/ tow.latency"))
    with pytest.raises(ScenarioError, match=r"unknown field 'max_num_seq'") as error:
        evaluate(tiny(tmp_path, good.replace("engine: {tensor_parallel_size: 2}", "engine: {max_num_seq: 2}")))
    assert "tiny.yaml:10" in str(error.value)
    with pytest.raises(ScenarioError, match=r"needs 'measure' and 'band'"):
        tiny(tmp_path, "system: a\nclaim: b\npaper: c\n")
    with pytest.raises(ScenarioError, match=r"cannot be like 'baseline'"):
        merged(tiny(tmp_path, good.replace("baseline: {}", "baseline: {like: baseline}")), "baseline")
    with pytest.raises(ScenarioError, match=r"unknown system 'orka'.*\n.*'orca'"):
        system_files(SYSTEMS, ["orka"])


def test_overlays_join_mappings_and_replace_kinds() -> None:
    assert overlaid({"model": "a"}, {"model": {"quantization": "fp8"}}) == {"model": {"name": "a", "quantization": "fp8"}}
    assert overlaid({"a": {"process": "poisson", "rate": 1}}, {"a": {"process": "at_once"}}) == {"a": {"process": "at_once"}}
    assert overlaid({"a": {"process": "poisson", "rate": 1}}, {"a": {"rate": 2}}) == {"a": {"process": "poisson", "rate": 2}}
    assert overlaid({"w": {"preset": "x"}}, {"w": {"synthetic": {}}}) == {"w": {"synthetic": {}}}


def test_every_system_of_the_survey_list_stands_on_the_scoreboard(shared_data: Path) -> None:
    """Each system that can be simulated at all (class A) is either rebuilt or says why it is not."""
    with (shared_data / "survey_systems.csv").open(encoding="utf-8") as handle:
        wanted = Counter(row["group"] for row in csv.DictReader(handle) if row["class"].startswith("A"))
    assert not wanted - Counter(file.system.group for file in FILES)
    assert len({file.name for file in FILES}) == len(FILES)
    assert all(file.system.band or file.system.not_reproduced for file in FILES)


def test_a_listed_system_says_why_it_is_not_run(tmp_path: Path) -> None:
    listed = tmp_path / "not-reproduced.yaml"
    listed.write_text("far:\n  {system: Far, claim: much, paper: none, not_reproduced: no reason to}\n", encoding="utf-8")
    [file] = system_files(tmp_path)
    assert (file.name, evaluate(file).verdict) == ("far", "not reproduced here")
    listed.write_text(TINY.replace("\n", "\n  ").replace("\n  ", "\nfar:\n  ", 1).rstrip() + "\n", encoding="utf-8")
    with pytest.raises(ScenarioError, match="'far' says no 'not_reproduced'"):
        system_files(tmp_path)
