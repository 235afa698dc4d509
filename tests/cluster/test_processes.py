"""Same scenario, same seed, same bytes: in any process. What the engine does is nothing to the arrivals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from simulator.scenario.run import run
from simulator.scenario.source import override, parse_source
from simulator.scenario.validate import validate

ROOT = Path(__file__).resolve().parents[2]
TEXT = """\
name: two-processes
seed: 11
model: Qwen/Qwen3-8B
hardware: H100-SXM
engine: {max_num_seqs: 32, max_num_batched_tokens: 512, max_model_len: 16384, num_gpu_blocks_override: 1500}
workload:
  synthetic:
    num_requests: 250
    arrivals: {process: poisson, rate: 3}
    lengths:
      prompt: {distribution: lognormal, median: 120, sigma: 0.9, low: 4, high: 2000}
      output: {distribution: lognormal, median: 100, sigma: 0.7, low: 4, high: 500}
    sessions:
      turns: {distribution: geometric, mean: 3}
      think_time_s: {distribution: exponential, mean: 2}
      shared_prefix_tokens: 256
      groups: 5
      zipf: 1.0
      max_context_tokens: 10000
slo: {ttft_s: 1, tpot_s: 100 ms}
"""


def windtunnel(hash_seed: str, folder: Path, scenario: Path) -> dict[str, bytes]:
    """Files that the command line writes in a fresh interpreter."""
    code = "import sys; from simulator.cli.main import main; sys.argv[0] = 'windtunnel'; main()"
    command = [sys.executable, "-c", code, "run", str(scenario), "--out", str(folder), "--no-report", "--steps"]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    scenario = tmp_path / "demo.yaml"
    scenario.write_text(TEXT)
    one = windtunnel("1", tmp_path / "one", scenario)
    two = windtunnel("4242", tmp_path / "two", scenario)
    assert one.keys() == two.keys() >= {"requests.parquet", "steps.parquet", "summary.json", "vllm_bench.json"}
    for name in one.keys() - {"provenance.json"}:  # it holds how long the run took
        assert one[name] == two[name], name
    first, second = (json.loads(files["provenance.json"]) for files in (one, two))
    for provenance in (first, second):
        assert provenance.pop("run_time")["simulation_cpu_s"] > 0
    assert first == second


@pytest.mark.parametrize(
    "settings",
    [
        ["engine.max_num_seqs=4"],
        ["engine.async_scheduling=false", "engine.block_size=32"],
        ["engine.enable_prefix_caching=false"],
        ["model=meta-llama/Llama-3.1-8B"],
        ["hardware=H200-SXM"],
        ["slo={ttft_s: 9}"],
    ],
)
def test_what_serves_the_requests_does_not_change_them(settings: list[str]) -> None:
    base = run(validate(parse_source(TEXT))).trace
    other = run(validate(override(parse_source(TEXT), settings)))
    assert (other.trace.arrival == base.arrival).all()
    for name in base.columns():
        mine, theirs = getattr(base, name), getattr(other.trace, name)
        if name == "prefix":
            assert (mine.ids == theirs.ids).all()
        else:
            np.testing.assert_array_equal(mine, theirs)
