"""Trace formats take their own options from the command line and from scenarios."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from simulator.cli.main import app
from simulator.core.errors import TraceError
from simulator.scenario import load
from simulator.scenario.trace import make_trace


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "t.csv"
    path.write_text("arrival,prompt_tokens,output_tokens\n0,10,5\n1000,10,5\n3000,10,5\n")
    return path


def test_describe_with_an_option(table: Path) -> None:
    told = CliRunner().invoke(app, ["trace", "describe", str(table), "--option", "seconds_per_unit=0.001", "--json"])
    assert told.exit_code == 0
    assert json.loads(told.output)["duration_s"] == 3.0


def test_a_wrong_option_is_answered_with_the_right_ones(table: Path) -> None:
    told = CliRunner().invoke(app, ["trace", "describe", str(table), "--option", "second_per_unit=1"])
    assert told.exit_code == 2
    assert "seconds_per_unit" in told.output + told.stderr
    bare = CliRunner().invoke(app, ["trace", "describe", str(table), "--option", "seconds_per_unit"])
    assert bare.exit_code == 2
    assert "NAME=VALUE" in bare.output + bare.stderr


@pytest.mark.parametrize("value", ["soon", "true"])
def test_a_value_of_another_kind_is_refused(table: Path, value: str) -> None:
    told = CliRunner().invoke(app, ["trace", "describe", str(table), "--option", f"seconds_per_unit={value}"])
    assert told.exit_code == 2
    assert "is float, not" in told.output + told.stderr


def test_formats_say_their_options() -> None:
    told = CliRunner().invoke(app, ["trace", "formats", "--json"])
    found = {row["format"]: row["options"] for row in json.loads(told.output)}
    assert "conversations" in found["weka"]
    assert found["vidur"] == []


def test_a_scenario_gives_options(table: Path) -> None:
    path = table.parent / "s.yaml"
    text = "model: meta-llama/Llama-3.1-8B\nhardware: H100-SXM\nworkload:\n  trace: {path: t.csv, options: {%s}}\n"
    path.write_text(text % "seconds_per_unit: 0.001")
    assert make_trace(load(path).workload, 0).duration == 3.0
    path.write_text(text % "unit: 0.001")
    with pytest.raises(TraceError, match="no option 'unit'"):
        make_trace(load(path).workload, 0)
