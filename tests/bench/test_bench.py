"""``windtunnel bench``: the numbers are sane, whatever the machine."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from typer.testing import CliRunner

from simulator.bench import measure as bench
from simulator.bench.measure import Measurement, cases, measure, run_case, select
from simulator.cli.main import app
from simulator.core.errors import UserError


@pytest.fixture(scope="module")
def chat() -> Measurement:
    """The quick case once, in a process of its own as the command does it."""
    (found,) = measure(["chat-10rps"])
    assert isinstance(found, Measurement)
    return found


def test_a_case_measures_what_it_says(chat: Measurement) -> None:
    assert chat.name == "chat-10rps"
    assert (chat.requests, chat.repeats) == (2000, cases()["chat-10rps"]["repeats"])
    assert chat.requests_per_cpu_s == pytest.approx(2000 / chat.cpu_s)
    assert chat.steps_per_cpu_s == pytest.approx(chat.steps / chat.cpu_s)
    # 2,000 requests over 200 s at 10 ms or less a step; as many steps as the longest answer at the very least.
    assert 200 / 0.02 < chat.steps < 200 / 0.002
    # Far from any machine's truth, yet wrong units (milliseconds, kibibytes) would be further.
    assert 1_000 < chat.requests_per_cpu_s < 1_000_000
    assert 40 < chat.peak_rss_mb < 1000
    assert chat.simpy_timeouts_per_cpu_s > 2 * chat.requests_per_cpu_s  # each takes an event or two at least


def test_the_work_of_a_case_is_the_same_every_time(chat: Measurement, monkeypatch: pytest.MonkeyPatch) -> None:
    once = {**cases(), "chat-10rps": {**cases()["chat-10rps"], "repeats": 1}}
    monkeypatch.setattr(bench, "cases", lambda: once)
    again = run_case("chat-10rps", None)
    assert (again.requests, again.steps, again.repeats) == (chat.requests, chat.steps, 1)


def test_a_case_takes_turns_with_the_one_it_is_held_against(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the requests take about twice the time, on a machine in whatever mood."""
    chat = cases()["chat-10rps"]
    trace = {"num_requests": 400, "arrivals": {"process": "poisson", "rate": 10}}
    workload = {"synthetic": {**chat["scenario"]["workload"]["synthetic"], **trace}}
    half = {
        **chat["scenario"],
        "name": "half",
        "workload": {"synthetic": {**workload["synthetic"], "num_requests": 200}},
    }
    pair = {
        "whole": {**chat, "repeats": 7, "against": "half", "scenario": {**chat["scenario"], "workload": workload}},
        "half": {**chat, "scenario": half},
    }
    monkeypatch.setattr(bench, "cases", lambda: pair)
    found = run_case("whole", None)
    assert found.against == "half"
    assert found.times_against is not None
    assert 1.2 < found.times_against < 3.5


def test_the_ratio_leaves_the_first_runs_out() -> None:
    assert bench._times([9.0, 3.0, 6.0, 5.0], [50.0, 1.0, 2.0, 2.0, 3.0]) == pytest.approx(2.0)
    assert bench._times([3.0], [1.0, 2.0]) == pytest.approx(2.0)


def test_json_has_the_promised_keys(chat: Measurement, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "measure", lambda names, traces: iter([chat]))
    found = CliRunner().invoke(app, ["bench", "chat-10rps", "--json"])
    assert found.exit_code == 0, found.output
    (entry,) = json.loads(found.stdout)
    assert {"name", "requests_per_cpu_s", "steps_per_cpu_s", "peak_rss_mb"} <= entry.keys()
    assert entry == asdict(chat)


def test_an_unknown_case_is_refused_with_the_nearest_name() -> None:
    found = CliRunner().invoke(app, ["bench", "chat-10rsp"])
    assert found.exit_code == 2
    assert "there is no bench case 'chat-10rsp'" in found.stderr
    assert "chat-10rps" in found.stderr
    with pytest.raises(UserError):
        select(["chat-10rps", "no such"])


def test_all_cases_are_listed_and_well_formed() -> None:
    found = CliRunner().invoke(app, ["bench", "--list"])
    assert found.exit_code == 0
    for name, case in cases().items():
        assert name in found.stdout
        assert case["scenario"]["name"] == name
        assert case["repeats"] >= 1
        assert case["about"]
        if "against" in case:
            assert cases()[case["against"]].get("needs") == case.get("needs")
    assert select([]) == list(cases())


def test_a_case_without_its_trace_is_skipped_aloud(tmp_path: Path) -> None:
    found = CliRunner().invoke(app, ["bench", "azure-conv-2000", "--traces", str(tmp_path)])
    assert found.exit_code == 0
    assert "skipped azure-conv-2000: needs AzureLLMInferenceTrace_conv.csv" in found.stderr
