from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from simulator.cluster.simulation import Simulation
from simulator.replica.records import SimulationRecords, Status
from tests.golden import golden, regenerate


@pytest.mark.parametrize("name", golden.SCENARIOS)
def test_the_numbers_are_those_of_before(name: str) -> None:
    built, records = golden.run(name)
    golden.check_invariants(name, built, records)
    lines = golden.differences(golden.read(name), golden.numbers(records, built.trace))
    assert not lines, golden.report(name, lines)


def test_no_expected_file_is_left_over() -> None:
    assert {path.stem for path in golden.EXPECTED.iterdir()} == set(golden.SCENARIOS)


def test_the_scenarios_reach_what_they_are_named_for() -> None:
    told = {name: golden.read(name) for name in golden.SCENARIOS}
    assert told["fcfs"]["requests.rejected"] > 0
    assert told["priority-preempting"]["engine.preemptions"] > 10
    assert told["prefix-caching"]["engine.prefix_hit_ratio_run"] > 0.1
    assert told["closed-loop-horizon"]["requests.in_flight"] == 16
    assert told["fcfs-async"]["latency.ttft_s.mean"] > told["fcfs"]["latency.ttft_s.mean"]


def test_a_difference_is_told_in_full() -> None:
    was = {"requests.finished": 300, "latency.ttft_s.mean": 0.1, "gone": 1.5, "same": 2.0, "verdict": "stable"}
    now = {"requests.finished": 299, "latency.ttft_s.mean": 0.11, "same": 2.0 * (1 + 1e-10), "verdict": "overloaded"}
    lines = golden.differences(was, now | {"new": 3})
    assert [line.split()[0] for line in lines] == ["requests.finished", "latency.ttft_s.mean", "gone", "verdict", "new"]
    text = golden.report("fcfs", lines)
    for part in ("was", "is", "300", "299", "-0.333 %", "+10 %", "(gone)", "(not there)", "regenerate.py fcfs"):
        assert part in text
    assert golden.differences({"a": 1.0}, {"a": 1.0 + 1e-8})
    assert golden.differences({"a": 1}, {"a": True})


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for path in golden.EXPECTED.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(golden, "EXPECTED", tmp_path)
    return tmp_path


def test_regenerating_writes_what_was_measured(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copy / "fcfs.json"
    before = path.read_bytes()
    path.write_bytes(before.replace(b'"requests.arrived": 300', b'"requests.arrived": 301'))
    assert regenerate.main(["fcfs"]) == 0
    assert path.read_bytes() == before
    assert "fcfs: 1 numbers changed" in capsys.readouterr().out


def test_a_run_that_loses_a_request_is_never_enshrined(
    copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    true_run = golden.run

    def forgetful(name: str) -> tuple[Simulation, SimulationRecords]:
        built, records = true_run(name)
        status = np.where(np.arange(len(records.requests.status)) == 7, Status.IN_FLIGHT, records.requests.status)
        return built, dataclasses.replace(records, requests=dataclasses.replace(records.requests, status=status))

    monkeypatch.setattr(golden, "run", forgetful)
    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    (copy / "pipeline-2.json").unlink()
    assert regenerate.main([]) == 1
    del before["pipeline-2.json"]
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    assert capsys.readouterr().err.count("refused") == len(golden.SCENARIOS)


def test_regenerating_knows_its_scenarios(capsys: pytest.CaptureFixture[str]) -> None:
    assert regenerate.main(["fcsf"]) == 2
    assert "no golden scenario 'fcsf'" in capsys.readouterr().err
