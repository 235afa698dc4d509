"""DynamoLLM's integer program, and what its pools draw when they are simulated."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

import simulator
from simulator.planning.optimisers.answer import Optimised
from simulator.planning.optimisers.dynamollm import Profile, solve_pools

PLAN = """
optimiser: dynamollm
options: {rate: 60, prompt_edges: [400], output_edges: [], tensor_parallel_sizes: [1], clocks: [0.5, 1.0]}
replications: 1
top: 2
scenario:
  model: Qwen/Qwen2.5-0.5B
  hardware: A100-SXM-80GB
  engine: {max_model_len: 2048, max_num_seqs: 16, enable_prefix_caching: false}
  cluster: {router: least-requests}
  workload:
    synthetic:
      num_requests: 400
      arrivals: {process: poisson, rate: 30}
      lengths: {prompt: {distribution: uniform, low: 50, high: 1000}, output: {distribution: uniform, low: 2, high: 60}}
  slo: {ttft_s: 0.3, tpot_s: 0.03, percentile: 90}
"""


@pytest.mark.parametrize("max_gpus", [None, 9, 7])
def test_the_program_finds_what_trying_everything_finds(max_gpus: int | None) -> None:
    """Two classes, two configurations of two and of four GPUs: all counts, each with the best split of the loads."""
    profiles = [
        [Profile(5.0, 600.0, 90.0), Profile(12.0, 1100.0, 60.0)],
        [Profile(0.0), Profile(4.0, 1100.0, 200.0)],
    ]
    rates, gpus = np.array([13.0, 3.0]), [2, 4]
    found = solve_pools(profiles, rates, gpus, max_gpus)
    best = np.inf
    for m, n, k in itertools.product(range(5), range(4), range(3)):
        if (max_gpus is not None and 2 * m + 4 * (n + k) > max_gpus) or k * 4.0 < 3.0 or 5.0 * m + 12.0 * n < 13.0:
            continue
        second = min(13.0, 12.0 * n)  # it costs less per request
        watts = 600.0 * m + 1100.0 * (n + k) + 90.0 * (13.0 - second) + 60.0 * second + 200.0 * 3.0
        best = min(best, watts)
    if not np.isfinite(best):
        assert found is None
        return
    assert found is not None and found.watts == pytest.approx(best)
    assert found.loads.sum(axis=1) == pytest.approx(rates)
    assert found.counts[1, 0] == 0 and found.loads[1, 0] == 0.0
    assert max_gpus is None or (found.counts @ np.array(gpus)).sum() <= max_gpus


def test_what_pools_are_believed_to_draw_is_held_against_a_simulation(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(PLAN, encoding="utf-8")
    found = simulator.plan(path)
    assert isinstance(found, Optimised) and found.best is not None
    beliefs = {str(row["design"]).split(" (")[0]: row["belief"] for row in found.rows if row["rank"] is not None}
    assert list(beliefs.values()) == sorted(beliefs.values()) and len(beliefs) == 4
    assert beliefs["pools"] <= beliefs["pools at full clock"] <= beliefs["pools of TP1 at full clock"]
    for row in found.rows[:2]:
        assert abs(row["gap"]) < 0.15 and 0.9 < row["within_slo"] <= 1.0
    written = found.write(tmp_path / "answer")
    again = simulator.run(written["scenario.yaml"]).result.summary
    assert again["requests"]["finished"] == 400
    assert again["energy"]["mean_w"] == pytest.approx(found.rows[0]["simulated"], rel=0.1)
