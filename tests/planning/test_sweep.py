from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from simulator.cli.main import app
from simulator.core.errors import ScenarioError, UserError
from simulator.planning import sweep as sweeping
from simulator.planning.pool import Processes
from simulator.planning.runs import Row
from simulator.planning.store import Store
from simulator.planning.sweep import Axis, Status, Task, parse_axis, sweep

SCENARIO = """
name: small
seed: 3
model: Qwen/Qwen2.5-0.5B
hardware: A100
workload: {synthetic: {num_requests: 40, arrivals: {process: poisson, rate: 20}, lengths: {prompt: 300, output: 20}}}
slo: {ttft_s: 0.5}
"""
AXES = [Axis("engine.max_num_seqs", ("4", "16")), Axis("hardware.gpu", ("A100", "L40S"))]


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SCENARIO, encoding="utf-8")
    return path


def test_values_are_split_at_commas_outside_brackets_and_quotes() -> None:
    assert parse_axis("a.b=1,2,4") == Axis("a.b", ("1", "2", "4"))
    assert parse_axis('x=[1,2],{a: 1, b: 2},"p,q"') == Axis("x", ("[1,2]", "{a: 1, b: 2}", '"p,q"'))
    for wrong in ("a.b", "=1", "a=1,,2", "a="):
        with pytest.raises(ScenarioError, match="path=value"):
            parse_axis(wrong)


def test_all_combinations_run_in_their_order_with_provenance(scenario: Path, tmp_path: Path) -> None:
    rows = sweep(scenario, AXES, tmp_path / "out", seeds=2)
    assert [(*row["settings"].values(), row["seed"]) for row in rows] == [
        (seqs, gpu, seed) for seqs in ("4", "16") for gpu in ("A100", "L40S") for seed in (3, 4)
    ]
    assert {row["status"] for row in rows} == {"ok"}
    table = pd.read_parquet(tmp_path / "out" / "results.parquet")
    assert len(table) == 8 and table["scenario_sha256"].nunique() == 8
    assert table["version"].notna().all() and table["calibration"].str.contains("A100|L40S").all()
    assert pd.read_csv(tmp_path / "out" / "results.csv").shape == table.shape
    # The same seed means the same requests whatever the engine.
    offered = table.groupby("seed")["throughput.input_tokens"].nunique()
    assert (offered == 1).all()


def test_processes_give_the_same_rows(scenario: Path, tmp_path: Path) -> None:
    def kept(rows: list[Row]) -> list[object]:
        return [(row["settings"], row["seed"], row["summary"]) for row in rows]

    alone = sweep(scenario, AXES, tmp_path / "one")
    together = sweep(scenario, AXES, tmp_path / "two", on=Processes(2))
    assert kept(alone) == kept(together)


def test_invalid_combinations_are_rows_with_their_reason(scenario: Path, tmp_path: Path) -> None:
    axes = [
        Axis("engine.max_num_seqs", ("4", "-1")),
        Axis("model.name", ("Qwen/Qwen2.5-0.5B", "meta-llama/Llama-3.1-70B")),
    ]
    rows = sweep(scenario, axes, tmp_path / "out")
    assert [row["status"] for row in rows] == ["ok", "invalid", "invalid", "invalid"]
    assert "does not fit" in rows[1]["reason"]
    assert "engine.max_num_seqs" in rows[2]["reason"]
    table = pd.read_csv(tmp_path / "out" / "results.csv")
    assert table["reason"].notna().sum() == 3


def test_finished_runs_are_not_run_again(scenario: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    once = sweeping.run_task

    def watched(task: Task) -> Row:
        ran.append(task.index)
        return once(task)

    monkeypatch.setattr(sweeping, "run_task", watched)
    first = sweep(scenario, AXES[:1], tmp_path / "out")
    assert ran == [0, 1]
    seen: list[Status] = []
    second = sweep(scenario, AXES, tmp_path / "out", progress=seen.append)  # another axis: A100 is the scenario's own
    assert ran == [0, 1, 1, 3]
    assert [row["summary"] for row in second[::2]] == [row["summary"] for row in first]
    assert (seen[-1].finished, seen[-1].total, seen[-1].reused) == (4, 4, 2)
    scenario.write_text(SCENARIO.replace("output: 20", "output: 21"), encoding="utf-8")
    sweep(scenario, AXES[:1], tmp_path / "out")
    assert ran[4:] == [0, 1]  # another scenario


def test_a_killed_sweep_goes_on_without_losing_or_repeating_a_run(scenario: Path, tmp_path: Path) -> None:
    """Killed with SIGKILL in the middle: workers go too, rows on disk stay, the rest is run once."""
    folder = tmp_path / "out"
    seqs = ",".join(str(n) for n in range(1, 11))
    command = [sys.executable, "-m", "simulator.cli", "sweep", str(scenario), "--set", f"engine.max_num_seqs={seqs}"]
    command += ["--set", "workload.synthetic.num_requests=1000", "--jobs", "2", "--out", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    store = folder / "runs.jsonl"
    until = time.monotonic() + 240
    while time.monotonic() < until and not (store.exists() and store.read_bytes().count(b"\n") >= 2):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with store.open("ab") as handle:
        handle.write(b'{"key": "torn')
    kept = [json.loads(line)["key"] for line in store.read_bytes().splitlines()[:-1]]
    assert 2 <= len(kept) < 10
    done = subprocess.run([*command, "--json"], capture_output=True, check=True, text=True)
    rows = json.loads(done.stdout)
    assert len(rows) == 10 and {row["status"] for row in rows} == {"ok"}
    keys = [json.loads(line)["key"] for line in store.read_bytes().splitlines()]
    assert keys[: len(kept)] == kept and len(keys) == len(set(keys)) == 10


def test_the_store_refuses_what_is_not_its_own(scenario: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear", encoding="utf-8")
    with pytest.raises(UserError, match="not a sweep's results"):
        sweep(scenario, AXES, tmp_path / "mine")
    store = Store(tmp_path / "out")
    with pytest.raises(UserError, match="another sweep"):
        sweep(scenario, AXES, tmp_path / "out")
    store.close()
    (tmp_path / "out" / "runs.jsonl").write_text("nonsense\n", encoding="utf-8")
    with pytest.raises(UserError, match="not a row of a sweep"):
        sweep(scenario, AXES, tmp_path / "out")


def test_an_axis_given_twice_is_refused(scenario: Path, tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="swept twice"):
        sweep(scenario, [AXES[0], AXES[0]], tmp_path / "out")


def test_the_command(scenario: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["sweep", str(scenario), "--set", "engine.max_num_seqs=4,-1", "--jobs", "1", "--out", str(out)]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.stderr
    assert "2 runs, 1 of them invalid." in shown.stdout
    none = CliRunner().invoke(app, ["sweep", str(scenario), "--set", "engine.max_num_seq=4,8", "--out", str(out)])
    assert none.exit_code == 2 and "2 runs, 2 of them invalid." in none.stdout
    missing = CliRunner().invoke(app, ["sweep", str(tmp_path / "none.yaml"), "--out", str(out)])
    assert missing.exit_code == 2
