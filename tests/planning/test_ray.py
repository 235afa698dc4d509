"""Sweeps on a Ray cluster: one that lives in this machine for the test."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import simulator
from simulator.core.errors import UserError
from simulator.planning.on_ray import Ray, executor
from simulator.planning.pool import Processes
from simulator.planning.sweep import Axis, sweep

SCENARIO = """
name: small
model: Qwen/Qwen2.5-0.5B
hardware: A100
workload: {synthetic: {num_requests: 40, arrivals: {process: poisson, rate: 20}, lengths: {prompt: 300, output: 20}}}
slo: {ttft_s: 0.5}
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SCENARIO, encoding="utf-8")
    return path


def test_where_runs_are_made_is_read_from_a_word() -> None:
    assert executor("processes", None) == Processes(1) and executor("processes", 3) == Processes(3)
    assert executor("ray", 2) == Ray(None, 2) and executor("ray:ray://host:10001", None) == Ray("ray://host:10001", None)
    for wrong in ("rays", "ray:", "processes:2", ""):
        with pytest.raises(UserError, match="no place to run on"):
            executor(wrong, None)


def test_without_ray_the_way_to_get_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"windtunnel\[ray\]"):
        next(Ray().spread(len, [()]))


def _sweep(scenario: Path, folder: Path, *more: str) -> list[str]:
    command = [sys.executable, "-m", "simulator.cli", "sweep", str(scenario), "--on", "ray", "--jobs", "2"]
    return [*command, "--out", str(folder), *more]


def _keys(store: Path) -> list[str]:
    return [json.loads(line)["key"] for line in store.read_bytes().splitlines()]


@pytest.mark.slow
def test_a_sweep_on_ray_is_that_of_processes_and_goes_on_where_it_was_killed(scenario: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'windtunnel[ray]')")
    store = tmp_path / "out" / "runs.jsonl"
    fields = ["engine.max_num_seqs=1,2,3,4,5,6,7,-1", "workload.synthetic.num_requests=500"]
    command = _sweep(scenario, tmp_path / "out", *(word for field in fields for word in ("--set", field)))
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=_root())
    until = time.monotonic() + 240
    while time.monotonic() < until and not (store.exists() and store.read_bytes().count(b"\n") >= 2):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = _keys(store)
    assert 2 <= len(kept) < 8
    done = subprocess.run([*command, "--json"], capture_output=True, check=True, text=True, cwd=_root())
    keys = _keys(store)
    assert keys[: len(kept)] == kept and len(keys) == len(set(keys)) == 8
    here = sweep(scenario, [Axis(*_axis(field)) for field in fields], tmp_path / "here")
    there = json.loads(done.stdout)
    for one, other in zip(here, there, strict=True):
        assert [one.get(name) for name in SAME] == [other.get(name) for name in SAME]
    assert [row["status"] for row in there] == ["ok"] * 7 + ["invalid"]


SAME = ("key", "settings", "seed", "status", "reason", "summary", "scenario_sha256", "code_sha256")


def _axis(field: str) -> tuple[str, tuple[str, ...]]:
    path, _, values = field.partition("=")
    return path, tuple(values.split(","))


def _root() -> Path:
    return Path(str(simulator.__file__)).parents[1]


@pytest.mark.slow
def test_what_a_run_raises_arrives_as_it_is(tmp_path: Path) -> None:
    """In a process of its own, as Ray leaves threads and sockets behind. A worker that dies is named, and so is a
    cluster that is not there."""
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'windtunnel[ray]')")
    script = tmp_path / "raises.py"
    script.write_text(RAISES, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(_root()), "RAY_task_retry_delay_ms": "0"}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, env=environment)
    said = done.stdout.splitlines()
    assert said[:3] == ["[(1, 1), (2, 4)]", "bad at here, do this", "no result"], done.stderr
    assert "ray:127.0.0.1:1: cannot be reached" in said[3]


RAISES = """
import os

from simulator.core.errors import UserError
from simulator.planning.on_ray import Ray


def square(x):
    return x * x


def wrong(x):
    raise UserError("bad", where="here", remedy="do this")


def dies(x):
    os._exit(1)


print(sorted(Ray(jobs=1).spread(square, [1, 2])))
try:
    list(Ray(jobs=1).spread(wrong, [1]))
except UserError as error:
    print(f"{error.message} at {error.where}, {error.remedy}")
try:
    list(Ray(jobs=1).spread(dies, [1]))
except UserError as error:
    print("no result" if "ended without a result" in error.message else error)
try:
    list(Ray("127.0.0.1:1").spread(square, [1]))
except UserError as error:
    print(error)
"""
