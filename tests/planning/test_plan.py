from __future__ import annotations

import itertools
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import simulator
from simulator.cli.main import app
from simulator.core.errors import ScenarioError
from simulator.planning import answer as words
from simulator.planning import charts
from simulator.planning.bounds import floors, highest_rate, roles_of
from simulator.planning.capacity import fewest_copies, sustained
from simulator.planning.change import Change
from simulator.planning.ledger import Ledger
from simulator.planning.load import read_plan
from simulator.planning.pictures import shake
from simulator.planning.probe import Bench, Probe
from simulator.planning.solve import solve
from simulator.planning.study import Study
from traces.trace import PrefixBlocks, Trace

ROOT = Path(__file__).parent.parent.parent
PLAN = """
name: small
question: {question}
find: {find}
{more}
replications: {replications}
tolerance: 0.03
scenario:
  seed: {seed}
  model: Qwen/Qwen2.5-0.5B
  hardware: A100
  engine: {{max_model_len: 4096}}
  cluster: {{router: least-requests}}
  workload:
    synthetic:
      num_requests: {requests}
      arrivals: {{process: poisson, rate: 30}}
      lengths: {{prompt: {{distribution: uniform, low: 200, high: 2000}}, output: {{distribution: uniform, low: 5, high: 60}}}}
  slo: {{ttft_s: {ttft}, tpot_s: 0.012}}
space: {space}
"""
SPACE = "{hardware.gpu: [A100, L4], engine.max_num_seqs: [2, 8]}"


def plan_file(folder: Path, **given: object) -> Path:
    fields: dict[str, object] = {"question": "what?", "find": "cheapest", "more": "rate: 40", "replications": 2, "seed": 0,
                                 "requests": 400, "ttft": 0.12, "space": SPACE} | given  # fmt: skip
    path = folder / "small.yaml"
    path.write_text(PLAN.format(**fields), encoding="utf-8")
    return path


def test_the_search_finds_what_exhaustive_search_finds(tmp_path: Path) -> None:
    """All copies of all designs, all replications, run to the end: the cheapest that serves, least loaded first."""
    file = read_plan(plan_file(tmp_path, more="rate: 40\ntop: 2\nmax_copies: 4"))
    found = solve(file, pictures=False)
    table: list[tuple[float, float, int, int]] = []
    for design in file.designs:
        assert design.scenario is not None
        bench = Bench(design.scenario)
        for copies in range(1, 5):
            probes = [bench.probe(40, copies, seed, patient=True) for seed in (0, 1)]
            if all(probe.meets for probe in probes):
                assert bench.usd_per_hour is not None
                slack = float(np.mean([probe.slack for probe in probes]))
                table.append((bench.usd_per_hour * copies, slack, design.index, copies))
                break
    table.sort()
    assert len(table) >= 3
    chosen = [(round(o.cost, 6), o.design.index, o.copies) for o in found.ranked[:2]]
    assert chosen == [(round(cost, 6), index, copies) for cost, _, index, copies in table[:2]]
    assert len(found.outcomes) == len(file.designs)
    assert len([o for o in found.outcomes if o.state == "dominated"]) >= 1  # it did not need to run everything


def test_the_highest_rate_is_that_of_exhaustive_search(tmp_path: Path) -> None:
    path = plan_file(tmp_path, find="highest-rate", more="by: rate-per-usd\ntop: 1", replications=1)
    found = solve(read_plan(path), pictures=False)
    everything = solve(read_plan(plan_file(tmp_path, find="highest-rate", more="by: rate-per-usd\ntop: all",
                                           replications=1)), pictures=False)  # fmt: skip
    assert found.best is not None and everything.best is not None
    assert found.best.design.index == everything.best.design.index
    assert found.best.value == pytest.approx(everything.best.value, rel=0.03)  # the search may start elsewhere
    assert len(everything.ranked) > len(found.ranked)
    assert len(found.all_probes) < len(everything.all_probes)
    best = found.best
    assert best.sustained is not None and best.sustained.above is not None and not best.sustained.above.meets


def test_two_seeds_agree_within_the_stated_interval(tmp_path: Path) -> None:
    """Plans with no request in common: their answers differ by no more than the interval of the difference, as often
    as 95 % says: 42 of these 45 pairs, 185 of the 190 of twenty seeds."""
    space = "{engine.max_num_seqs: [32]}"
    answers = []
    for seed in range(0, 1000, 100):
        path = plan_file(tmp_path, find="highest-rate", more="", replications=4, seed=seed, space=space, requests=1000)
        found = solve(read_plan(path), pictures=False).best
        assert found is not None and found.sustained is not None
        answers.append(found.sustained)
    assert len({found.by_seed for found in answers}) == 10
    agree = [
        abs(one.rate - other.rate) <= math.hypot(one.high - one.rate, other.high - other.rate)
        for one, other in itertools.combinations(answers, 2)
    ]
    assert sum(agree) >= 41 and len(agree) == 45
    assert all(found.high - found.low < 0.5 * found.rate for found in answers)  # intervals that say something


def test_bounds_hold_and_floors_are_those_of_an_empty_system(tmp_path: Path) -> None:
    """No design carries more than its bound; a request alone is no faster than its floor."""
    file = read_plan(plan_file(tmp_path, replications=1))
    for design in file.designs:
        assert design.scenario is not None
        bench = Bench(design.scenario)
        trace = bench.trace(0)
        bound = highest_rate(bench.groups, roles_of(design.scenario), trace)
        flooded = bench.result(50 * bound, 1, 0).summary["throughput"]["request_per_s"]
        assert 0.2 * bound < flooded <= bound, design.label
        empty = bench.result(0.05, 1, 0)
        for floor in floors(bench.groups, ("both",), trace, bench.slo):
            measured = empty.summary["latency"][f"{floor.name.lower()}_s"]["p99"]
            assert 0.9 * floor.floor_s <= floor.floor_s <= measured * 1.001 and floor.floor_s > 0.5 * measured


def test_a_stopped_run_is_one_that_would_have_missed(tmp_path: Path) -> None:
    file = read_plan(plan_file(tmp_path, requests=1500))
    assert file.designs[0].scenario is not None
    bench = Bench(file.designs[0].scenario)
    stopped = 0
    for rate in (2.0, 20.0, 40.0, 80.0, 160.0, 500.0):
        quick, patient = bench.probe(rate, 1, 0), bench.probe(rate, 1, 0, patient=True)
        assert quick.meets == patient.meets
        if quick.fraction < 1.0:
            stopped += 1
            assert not patient.meets and "certain to miss" in quick.why
        else:
            assert quick.slack == patient.slack
    assert stopped >= 2


def test_infeasible_says_why(tmp_path: Path) -> None:
    space = "{model.name: [meta-llama/Llama-3.1-70B, Qwen/Qwen2.5-0.5B], hardware.gpu: [A100]}"
    found = solve(read_plan(plan_file(tmp_path, ttft=0.001, space=space)), pictures=False)
    assert found.best is None
    reasons = {outcome.pruned_by: outcome.reason for outcome in found.outcomes}
    assert "does not fit" in reasons["memory plan"] and "It fits with" in reasons["memory plan"]
    assert "over its limit of 0.001 s" in reasons["latency floor"]
    assert not any(outcome.probes for outcome in found.outcomes)
    assert words.sentence(found).startswith("Infeasible: none of the 2 designs")
    budget = solve(
        read_plan(plan_file(tmp_path, more="rate: 4000\nmax_gpus: 3", space="{hardware.gpu: [L4]}")), pictures=False
    )
    assert budget.outcomes[0].pruned_by == "throughput bound" and "3 allowed" in budget.outcomes[0].reason


def test_a_killed_plan_goes_on_without_losing_or_repeating_a_run(tmp_path: Path) -> None:
    """Killed with SIGKILL in the middle: every run that had ended is on disk, and none of them is made again."""
    path = plan_file(tmp_path, more="rate: 40\ntop: all\nmax_copies: 3", requests=1000,
                     space="{engine.max_num_seqs: [2, 4, 8, 16]}")  # fmt: skip
    folder, whole = tmp_path / "out", tmp_path / "whole"
    command = [sys.executable, "-m", "simulator.cli", "plan", str(path), "--jobs", "2", "--no-pictures", "--out"]
    process = subprocess.Popen([*command, str(folder)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ledger = folder / "runs.jsonl"
    until = time.monotonic() + 240
    while time.monotonic() < until and not (ledger.exists() and ledger.read_bytes().count(b'"probe"') >= 3):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1.5)  # its processes end within a second
    kept = ledger.read_bytes()
    assert kept.endswith(b"\n") and not (folder / "plan.json").exists()
    with ledger.open("ab") as handle:
        handle.write(b'{"key": "torn')
    shown = CliRunner().invoke(app, ["plan", str(path), "--jobs", "1", "--no-pictures", "--out", str(folder)])
    assert shown.exit_code == 0, shown.stderr
    assert ledger.read_bytes().startswith(kept)
    keys = [json.loads(line)["key"] for line in ledger.read_bytes().splitlines()]
    assert len(keys) == len(set(keys)) > kept.count(b"\n") >= 7  # 4 designs judged, 3 runs
    again = CliRunner().invoke(app, ["plan", str(path), "--jobs", "1", "--no-pictures", "--out", str(whole)])
    assert again.exit_code == 0 and again.stdout.replace(str(whole), str(folder)) == shown.stdout
    assert (whole / "designs.csv").read_bytes() == (folder / "designs.csv").read_bytes()
    size = ledger.stat().st_size
    CliRunner().invoke(app, ["plan", str(path), "--jobs", "1", "--no-pictures", "--out", str(folder)])
    assert ledger.stat().st_size == size  # an answered plan asks for nothing


def toy(meets_from: int) -> Callable[[float, int, int], Probe]:
    def run(rate: float, copies: int, seed: int) -> Probe:
        good = copies >= meets_from + seed
        return Probe(rate, copies, seed, good, 1.0, "stable", "", {}, 0.5, 1.0, rate, 1.0, 1.0, "", "", "", 1, 0.0)

    return run


@pytest.mark.parametrize("guess", [1, 7, 30, 64])
@pytest.mark.parametrize("need", [1, 2, 9, 31, 62])
def test_the_fewest_copies_from_any_guess(need: int, guess: int) -> None:
    """The second replication needs one copy more: both must be served."""
    found = fewest_copies(toy(need), 1.0, (0, 1), least=1, guess=guess, limit=64)
    assert found.copies == need + 1
    assert [probe.seed for probe in found.at] == [0, 1]
    assert found.below is not None and found.below.copies == need
    assert len(found.probes) <= 24
    assert fewest_copies(toy(70), 1.0, (0, 1), least=1, guess=guess, limit=64).copies is None


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Replications whose knees scatter by 5 % around 100 requests/s."""
    rng, hits, trials = np.random.default_rng(3), 0, 200
    for _ in range(trials):
        knees = 100.0 * np.exp(0.05 * rng.standard_normal(4))

        def run(rate: float, copies: int, seed: int, knees: np.ndarray = knees) -> Probe:
            good = rate <= knees[seed]
            return Probe(rate, copies, seed, good, 1.0, "", "", {}, 0.0, None, None, None, None, "", "", "", 1, 0.0)

        found = sustained(run, 1, range(4), guess=30.0, tolerance=0.01, confidence=0.95)
        hits += found.low <= 100.0 <= found.high
    assert 0.92 <= hits / trials <= 1.0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"more": "rate: 40\nbudget: 3"}, "unknown field 'budget'"),
        ({"more": ""}, "needs a 'rate'"),
        ({"find": "highest-rate"}, "leave it out"),
        ({"find": "best"}, "small.yaml:[0-9]+: find: 'best' is not one of the values.*\n.*cheapest"),
        ({"more": "rate: 0"}, "small.yaml:[0-9]+: rate: 0 is out of range: it must be more than 0"),
        ({"more": "rate: 4\napi_price: {output_usd_per_mtok: 1}"}, "api_price: the field 'input_usd_per_mtok' is missing"),
        ({"more": "rate: 4", "space": "{energy.carbon.region: [DE-L]}"}, "small.yaml:[0-9]+: .*energy.carbon.*has no column"),
        ({"more": "rate: 4", "space": "{engine.max_num_seqs: 8}"}, "space.engine.max_num_seqs: 8 is not a list"),
        ({"more": "rate: 4", "space": "{engine.max_num_seqs: []}"}, "space.engine.max_num_seqs: is empty"),
        ({"more": "rate: 4", "space": "{engine.max_num_seq: [8]}"}, "small.yaml:[0-9]+: space.engine.max_num_seq: unknown"),
        ({"find": "lowest-bill"}, "at its own times"),
        ({"find": "lowest-bill", "more": "max_gpus: 4"}, "bound the replicas"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(tmp_path: Path, change: dict[str, object], said: str) -> None:
    with pytest.raises(ScenarioError, match=said) as error:
        read_plan(plan_file(tmp_path, **change))
    assert "small.yaml" in str(error.value)


@pytest.mark.parametrize("path", sorted((ROOT / "scenarios" / "plans").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_plans_that_ship_are_questions_about_valid_designs(path: Path) -> None:
    file = read_plan(path)
    assert file.name == path.stem and file.plan.question.endswith("?") and len(file.designs) > 1
    assert all(design.scenario is not None for design in file.designs)


def test_a_wrong_point_of_the_space_is_a_design_with_a_reason(tmp_path: Path) -> None:
    file = read_plan(plan_file(tmp_path, space="{engine.max_num_seqs: [8, -1]}"))
    assert [design.scenario is None for design in file.designs] == [False, True]
    assert "at least 1" in file.designs[1].reason


def test_the_command_writes_an_answer_that_can_be_run(tmp_path: Path) -> None:
    path = plan_file(tmp_path, question="Which <GPU>?", replications=2, requests=300,
                     space="{hardware.gpu: [A100, L4]}")  # fmt: skip
    out = tmp_path / "answer"
    shown = CliRunner().invoke(app, ["plan", str(path), "--jobs", "1", "--out", str(out)])
    assert shown.exit_code == 0, shown.stderr
    assert "The cheapest way to serve 40 requests/s" in shown.stdout and "Next best:" in shown.stdout
    assert "vllm serve Qwen/Qwen2.5-0.5B" in shown.stdout
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Which &lt;GPU&gt;?" in page and page.count("<svg") == 4
    assert all(f"<h3>{title}</h3>" in page for title in ("Goodput against rate", "Per GPU against per user"))
    assert "traffic +20%" in page and "prompts twice as long" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    said = json.loads((out / "plan.json").read_text(encoding="utf-8"))
    assert said["feasible"] and said["effort"]["runs"] > 0
    result = simulator.run(out / "scenario.yaml")
    assert result.summary["stability"]["verdict"] == "stable"
    assert result.result.trace.rate == pytest.approx(40.0)
    again = CliRunner().invoke(app, ["plan", str(path), "--out", str(tmp_path)])
    assert again.exit_code == 2  # the folder of the plan file is no answer's


def test_the_notebook_functions_return_pandas(tmp_path: Path) -> None:
    path = tmp_path / "one.yaml"
    path.write_text("model: Qwen/Qwen2.5-0.5B\nhardware: A100\nworkload: {synthetic: {num_requests: 20, arrivals: "
                    "{process: poisson, rate: 20}, lengths: {prompt: 300, output: 20}}}\n", encoding="utf-8")  # fmt: skip
    one = simulator.run(path, {"engine.max_num_seqs": 4})
    assert len(one.requests) == 20 and one.row["requests.finished"] == 20
    assert one.result.setup.args.max_num_seqs == 4
    table = simulator.sweep(path, {"engine.max_num_seqs": [1, 8], "hardware.gpu": ["A100"]})
    assert table["latency.e2e_s.mean"].iloc[0] > table["latency.e2e_s.mean"].iloc[1]
    planned = simulator.plan(plan_file(tmp_path, space="{hardware.gpu: [L4]}", requests=300))
    assert planned.answer.startswith("The cheapest way")
    assert planned.designs["copies"].iloc[0] >= 1 and planned.runs["meets"].any()
    with pytest.raises(AttributeError):
        _ = simulator.nothing
    assert math.isfinite(planned.designs["usd_per_hour"].iloc[0])


def test_the_lowest_bill_is_that_of_the_runs_themselves(tmp_path: Path) -> None:
    """Named values of a whole cluster: replicas that stay, and an autoscaler with its cold starts, at the load's own
    times; bills are those of plain runs, and what the autoscaler holds is between its bounds."""
    wave = "{process: rate_curve, times_s: [0, 30, 60, 90, 120], rates: [10, 90, 90, 5, 5]}"
    scaling = "{policy: queue, options: {target_requests: 8, stabilization_down_s: 10}, interval_s: 2, max_replicas: 4}"
    space = (
        "{cluster: {one: {replicas: 1, router: least-requests}, four: {replicas: 4, router: least-requests}, "
        f"scaled: {{replicas: 2, router: least-requests, cold_start: {{total_s: 2}}, scaling: {scaling}}}}}}}"
    )
    path = plan_file(tmp_path, find="lowest-bill", more="top: all", replications=2, requests=3000, ttft=0.5, space=space)
    text = path.read_text(encoding="utf-8").replace("{process: poisson, rate: 30}", wave)
    text = text.replace("max_model_len: 4096", "max_model_len: 4096, max_num_seqs: 8")
    path.write_text(text.replace("tpot_s: 0.012", "percentile: 90"), encoding="utf-8")
    file = read_plan(path)
    found = solve(file, pictures=False)
    assert [outcome.design.label for outcome in found.ranked] == ["scaled", "four"]
    assert {o.design.label: o.state for o in found.outcomes}["one"] == "infeasible"
    for outcome in found.ranked:
        assert outcome.design.scenario is not None and outcome.bill is not None and outcome.gpus_held is not None
        paid = [simulator.run(outcome.design.scenario, seed=seed).summary["cost"]["usd_per_hour"] for seed in (0, 1)]
        assert outcome.bill.by_seed == pytest.approx(paid, rel=1e-12)
        assert outcome.usd_per_hour == pytest.approx(sum(paid) / 2)
    best = found.best
    assert best is not None and best.gpus_held is not None and 1.0 < best.gpus_held < 4.0
    assert words.sentence(found).startswith("The lowest bill for this load within its SLO is that of 1 to 4 replicas")
    assert "GPUs on average" in words.usd(best) and "Next best: 4 replicas" in words.next_sentence(found)
    words.write(found, tmp_path / "out", "page")
    again = simulator.run(tmp_path / "out" / "scenario.yaml")  # recommended as it stands
    assert again.summary["cost"]["usd_per_hour"] == pytest.approx(best.bill.by_seed[0] if best.bill else None)
    with pytest.raises(ScenarioError, match="for replicas that stay"):
        read_plan(plan_file(tmp_path, space=space.replace("one: {replicas: 1, router: least-requests}, ", "")
                            .replace("four: {replicas: 4, router: least-requests}, ", "")))  # fmt: skip


def test_slower_steps_are_shorter_limits_and_gaps(tmp_path: Path) -> None:
    """And what is sustained then is less than the plain ratio says, because limits bind sooner, too."""
    path = plan_file(tmp_path, find="highest-rate", more="", replications=1, space="{engine.max_num_seqs: [32]}")
    file = read_plan(path)
    study = Study(file.plan, Ledger())
    best = solve(file, pictures=False).best
    assert best is not None and best.sustained is not None
    same, _ = shake((study, best, Change("the same")))
    slow, probes = shake((study, best, Change("slower", slower=1.3)))
    assert same.rate == pytest.approx(best.sustained.rate, rel=0.05)
    assert 0.5 * same.rate < slow.rate < same.rate / 1.3
    assert {probe.meets for probe in probes} == {True, False}
    shorter, _ = shake((study, best, Change("prompts half as long", prompts=0.5)))
    longer, _ = shake((study, best, Change("prompts twice as long", prompts=2.0)))
    assert longer.rate < same.rate < shorter.rate


def test_a_change_of_the_load_changes_what_it_says() -> None:
    prefix = PrefixBlocks(np.array([0, 2, 4, 4]), np.array([1, 2, 1, 3]), 16)
    trace = Trace(np.zeros(3), np.array([40, 33, 90]), np.array([5, 5, 100]), prefix=prefix)
    longer = Change(prompts=2.0).applied(trace, 0, 200)
    assert longer.prompt_tokens.tolist() == [80, 66, 100] and longer.prefix is not None  # cut to what fits the model
    assert longer.prefix.block_tokens == 32 and longer.prefix.ids.tolist() == [1, 2, 1, 3]
    alone = Change(private=1.0).applied(trace, 0, 200)
    assert alone.prefix is not None and len(set(alone.prefix.ids.tolist()) | {1, 2, 3}) == 7
    assert Change().applied(trace, 0, 200) is trace


def test_a_day_has_hours_with_what_replicas_ready_then_carry(tmp_path: Path) -> None:
    wave = "{process: diurnal, rate: 0.02, amplitude: 0.9}"
    space = "{cluster: {two: {replicas: 2, router: least-requests}}}"
    path = plan_file(tmp_path, find="lowest-bill", more="", replications=1, requests=1700, ttft=0.5, space=space)
    path.write_text(path.read_text(encoding="utf-8").replace("{process: poisson, rate: 30}", wave), encoding="utf-8")
    found = solve(read_plan(path))
    assert 20 <= len(found.hours) <= 24 and {hour.ready for hour in found.hours} == {2.0}
    assert sum(hour.offered for hour in found.hours) * 3600 <= 1700
    assert len({hour.carries for hour in found.hours}) == 1 and found.hours[0].carries > 20.0
    assert [figure["title"] for figure in charts.figures(found)] == [
        "Cost against SLO", "If the plan is wrong", "Headroom by the hour", "SLO by the hour"
    ]  # fmt: skip


def test_disaggregated_designs_are_planned_like_any_other(tmp_path: Path) -> None:
    """A ratio of prefill to decode replicas is a value of the space; bounds and copies count all groups."""
    pair = "[{name: prefill, role: prefill}, {name: decode, role: decode}]"
    path = plan_file(tmp_path, more="rate: 30\ntop: all\nmax_copies: 2", requests=300, replications=1,
                     space=f"{{cluster.groups: [{pair}, []]}}")  # fmt: skip
    found = solve(read_plan(path), pictures=False)
    assert {o.design.label for o in found.ranked} == {"groups 1 prefill + 1 decode", "groups none"}
    split = next(o for o in found.ranked if "prefill" in o.design.label)
    assert split.gpus == 2 * (split.copies or 0)
    assert "1 replica of A100-SXM-80GB (prefill) and 1 replica of A100-SXM-80GB (decode)" in words.hardware(split)
