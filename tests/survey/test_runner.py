from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from simulator.cli.main import app
from simulator.core.errors import UserError
from simulator.survey import runner, scoreboard
from simulator.survey.evaluate import evaluate
from simulator.survey.load import SystemFile, system_files
from simulator.survey.runner import Status, run_survey

GOOD = """
system: "{name} <b>"
group: G1 Instance scheduling and batching
claim: a claim
paper: none
common:
  model: Qwen/Qwen2.5-0.5B
  hardware: A100
  workload: {{synthetic: {{num_requests: 10, arrivals: {{process: at_once}}, lengths: {{prompt: 100, output: 20}}}}}}
baseline: {{}}
measure: {{one: {{of: baseline}}}}
band: [{{name: finished, value: one.requests.finished, low: {low}, why: ten it is}}]
"""
NOT_HERE = "system: Elsewhere\ngroup: G11 RAG\nclaim: much\npaper: none\nnot_reproduced: no retrieval here\n"


def systems(folder: Path, **texts: str) -> list[SystemFile]:
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return system_files(folder)


def test_finished_systems_are_kept_until_their_file_or_the_code_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    files = systems(tmp_path / "s", good=GOOD.format(name="good", low=10), bad=GOOD.format(name="bad", low=11), none=NOT_HERE)
    told: list[Status] = []
    outcomes = run_survey(files, out, jobs=2, progress=told.append)
    assert {name: found.verdict for name, found in outcomes.items()} == {
        "bad": "miss", "good": "within band", "none": "not reproduced here",
    }  # fmt: skip
    assert told[0].finished == 1 and told[0].total == 3 and len(told[0].running) == 2 and told[0].eta_s is None

    def refuse(*_: object) -> None:
        raise AssertionError("ran again")

    with monkeypatch.context() as patch:
        patch.setattr(runner._Pool, "_start", refuse)
        assert run_survey(files, out, jobs=2) == outcomes
        (tmp_path / "s" / "good.yaml").write_text(GOOD.format(name="good", low=9), encoding="utf-8")
        with pytest.raises(AssertionError, match="ran again"):
            run_survey(system_files(tmp_path / "s"), out, jobs=1)
        patch.setattr(runner, "code_digest", lambda: "another version")
        assert runner.kept(files[0], out) is None


def test_what_finished_before_an_error_is_kept_and_the_error_names_its_place(tmp_path: Path) -> None:
    out = tmp_path / "out"
    broken = GOOD.format(name="broken", low=1).replace("hardware: A100", "hardware: A1000")
    files = systems(tmp_path / "s", a_good=GOOD.format(name="good", low=10), z_broken=broken)
    with pytest.raises(UserError, match=r"z_broken.yaml: measure.one: .*A1000"):
        run_survey(files, out, jobs=1)
    assert runner.kept(files[0], out) is not None and not list((out / "systems").glob("*.error.json"))


def test_a_process_that_dies_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = systems(tmp_path / "s", good=GOOD.format(name="good", low=10))
    monkeypatch.setattr(runner, "work", os._exit)  # called with a path: a TypeError in the child
    with pytest.raises(UserError, match="ended with code 1 and no result"):
        run_survey(files, tmp_path / "out", jobs=1)


def test_the_scoreboard_shows_every_verdict_and_escapes_text(tmp_path: Path) -> None:
    files = systems(tmp_path / "s", bad=GOOD.format(name="bad", low=11), none=NOT_HERE)
    table = scoreboard.rows(files, {file.name: evaluate(file) for file in files})
    assert [row["name"] for row in table] == ["bad", "none"]  # G1 before G11
    written = scoreboard.write(table, tmp_path / "out")
    page = written["html"].read_text(encoding="utf-8")
    assert "bad &lt;b&gt;" in page and "<b>\n" not in page.partition("</style>")[0]
    assert "ten it is" in page and "no retrieval here" in page and "http" not in page.replace("http-equiv", "")
    with written["csv"].open(encoding="utf-8") as handle:
        first, second = csv.DictReader(handle)
    assert (first["ours"], first["band"], first["verdict"], first["why"]) == (
        "finished 10", "finished at least 11", "miss", "finished: ten it is",
    )  # fmt: skip
    assert second["why"] == "no retrieval here"
    document = tmp_path / "doc.md"
    document.write_text(f"before\n{scoreboard.BEGIN}\nold\n{scoreboard.END}\nafter\n", encoding="utf-8")
    scoreboard.write_document(table, document)
    text = document.read_text(encoding="utf-8")
    assert "**miss**: ten it is" in text and text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    with pytest.raises(UserError, match="no place for the scoreboard"):
        scoreboard.write_document(table, tmp_path / "other.md")
    assert json.loads(written["json"].read_text(encoding="utf-8"))["counts"] == {
        "within band": 0, "miss": 1, "not reproduced here": 1,
    }  # fmt: skip


def test_the_command_lists_runs_and_refuses(tmp_path: Path) -> None:
    systems(tmp_path / "s", none=NOT_HERE)
    common = ["survey", "--systems", str(tmp_path / "s"), "--out", str(tmp_path / "out")]
    listed = CliRunner().invoke(app, [*common, "--list"])
    assert listed.exit_code == 0 and "Elsewhere" in listed.stdout
    done = CliRunner().invoke(app, [*common, "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)[0]["verdict"] == "not reproduced here"
    wrong = CliRunner().invoke(app, [*common, "nobody"])
    assert wrong.exit_code == 2 and "unknown system 'nobody'" in wrong.stderr
