from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

import simulator
from simulator.core.errors import UserError
from simulator.planning.optimisers.answer import Optimised
from simulator.planning.optimisers.melange import LEAST, Bucket, Fleet, Grid, believed, loads, solve_mix
from traces.trace import Trace

PLAN = """
optimiser: melange
options: {rate: 100, gpus: [L4, A100-SXM-80GB]}
replications: 2
scenario:
  model: Qwen/Qwen2.5-0.5B
  hardware: A100
  engine: {max_model_len: 4096, max_num_seqs: 16}
  cluster: {router: least-requests}
  workload:
    synthetic:
      num_requests: 400
      arrivals: {process: poisson, rate: 20}
      lengths: {prompt: {distribution: uniform, low: 50, high: 1000}, output: {distribution: uniform, low: 8, high: 60}}
  slo: {ttft_s: 0.3, tpot_s: 0.03}
"""


def bucket(share: float, *rates: float) -> Bucket:
    return Bucket((0, 1), (0, 1), share, rates)


@pytest.mark.parametrize("rate", [1.0, 7.0, 20.0])
def test_the_program_rents_what_trying_everything_rents(rate: float) -> None:
    """Two types and two buckets: for each number of replicas, the best split is found by a fine grid."""
    buckets, prices = [bucket(0.7, 5.0, 12.0), bucket(0.3, 0.5, 4.0)], np.array([1.0, 3.5])
    counts, shares = solve_mix(buckets, prices, rate)
    grid = np.linspace(0.0, 1.0, 201)
    first, second = np.meshgrid(grid, grid)
    busy = [
        rate * (0.7 * a / buckets[0].rates[j] + 0.3 * b / buckets[1].rates[j])
        for j, (a, b) in enumerate(((first, second), (1 - first, 1 - second)))
    ]
    best = min(
        m * prices[0] + n * prices[1]
        for m, n in itertools.product(range(30), range(12))
        if ((busy[0] <= m + 0.02) & (busy[1] <= n + 0.02)).any()
    )
    assert counts @ prices == pytest.approx(best)
    assert shares.sum(axis=1) == pytest.approx([1.0, 1.0])
    assert (loads(buckets, shares, rate) <= counts + 1e-6).all()
    assert believed(buckets, Fleet(counts, shares), rate) >= rate * (1 - 1e-6)


def test_types_that_are_not_rented_get_nothing_not_even_a_rounding_error() -> None:
    """The solver leaves shares of 1e-15, for which a fleet without that type would be believed to carry nothing."""
    for seed in range(30, 40):
        rng = np.random.default_rng(seed)
        buckets = [bucket(0.125, *rates) for rates in rng.uniform(0.1, 20.0, (8, 4)).tolist()]
        counts, shares = solve_mix(buckets, rng.uniform(0.3, 5.0, 4), 50.0)
        assert not shares[:, counts == 0].any()
        assert believed(buckets, Fleet(counts, shares), 50.0) >= 50.0 * (1 - 1e-6)


def test_a_type_that_cannot_serve_a_bucket_gets_none_of_it() -> None:
    counts, shares = solve_mix([bucket(0.5, 10.0, 10.0), bucket(0.5, 0.0, 10.0)], np.array([0.1, 9.0]), 20.0)
    assert shares[1].tolist() == [0.0, 1.0] and counts.tolist() == [1, 1]


def test_every_request_is_in_a_bucket_that_has_enough_of_them() -> None:
    rng = np.random.default_rng(1)
    trace = Trace(np.zeros(5000), rng.integers(1, 20000, 5000), rng.geometric(0.01, 5000))
    grid = Grid(trace)
    sizes = np.bincount(grid(trace))
    assert len(sizes) == len(grid.edges) > 5 and sizes.min() >= LEAST and sizes.sum() == 5000
    alone = Grid(trace.head(1))
    assert alone(trace.head(1)).tolist() == [0] and len(alone.edges) == 1
    assert alone(trace).max() == 0  # another draw of the load goes to the buckets there are


def test_the_belief_is_held_against_a_simulation(tmp_path: Path) -> None:
    path = tmp_path / "load.yaml"
    path.write_text(PLAN, encoding="utf-8")
    found = simulator.plan(path)
    assert isinstance(found, Optimised) and found.best is not None
    prices = [row["usd_per_hour"] for row in found.rows]
    assert prices[0] == min(prices)  # never dearer than a single type
    assert found.belief is not None and found.simulated is not None and found.gap is not None
    assert found.belief >= 100 * (1 - 1e-6) and found.simulated > 0 and -0.6 < found.gap < 2.0
    assert found.rows[0]["low"] <= found.simulated <= found.rows[0]["high"]
    written = found.write(tmp_path / "answer")
    again = simulator.run(written["scenario.yaml"])  # the same requests, where the program sends them
    assert again.result.summary["requests"]["finished"] == 400
    path.write_text(PLAN.replace("  slo: {ttft_s: 0.3, tpot_s: 0.03}\n", ""), encoding="utf-8")
    with pytest.raises(UserError, match="without an SLO"):
        simulator.plan(path)
