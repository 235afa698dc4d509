"""ExeGPT's search: branch and bound finds what trying everything finds, and its belief is near what is simulated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import simulator
from simulator.planning.optimisers.answer import Optimised
from simulator.planning.optimisers.branch import best_within
from simulator.planning.optimisers.exegpt import Lengths, Prices, _served
from simulator.planning.optimisers.optimiser import Design, Question
from simulator.planning.runs import WORKSHOP
from simulator.scenario import load
from traces.trace import Trace

PLAN = """
optimiser: exegpt
options: {{gpus: 2, latency_s: {bound}, strategies: {strategies}, sizes: [1, 2, 4, 8, 16, 32, 64]}}
replications: 1
top: {top}
scenario:
  model: Qwen/Qwen2.5-0.5B
  hardware: A100-SXM-80GB
  engine: {{max_model_len: 400, enable_prefix_caching: false}}
  workload:
    synthetic:
      num_requests: 1024
      arrivals: {{process: at_once}}
      lengths:
        prompt: 128
        output: {{distribution: normal, mean: 100, std: 40, low: 2, high: 250}}
"""


def asked(folder: Path, bound: float, strategies: str = "[rra]", top: int = 1) -> Optimised:
    path = folder / "exegpt.yaml"
    path.write_text(PLAN.format(bound=bound, strategies=strategies, top=top), encoding="utf-8")
    found = simulator.plan(path)
    assert isinstance(found, Optimised)
    return found


@settings(max_examples=200, deadline=None)
@given(
    wide=st.integers(1, 9), high=st.integers(1, 9), seed=st.integers(0, 1 << 30), limit=st.floats(0, 20), tie=st.booleans()
)  # fmt: skip
def test_branch_and_bound_finds_what_trying_everything_finds(
    wide: int, high: int, seed: int, limit: float, *, tie: bool
) -> None:
    rng = np.random.default_rng(seed)
    steps = rng.integers(0, 3, (2, wide, high)) if tie else rng.random((2, wide, high))
    rate, taken = (one.cumsum(axis=0).cumsum(axis=1) for one in steps)
    found, judged = best_within(lambda x, y: (float(rate[x, y]), bool(taken[x, y] <= limit)), wide, high)
    within = taken <= limit
    assert judged <= wide * high
    assert (found.rate if found else None) == (rate[within].max() if within.any() else None)
    assert found is None or (found.within and within[found.at] and rate[found.at] == found.rate)


def test_its_schedules_are_the_best_of_all_that_it_believes_in(tmp_path: Path) -> None:
    found = asked(tmp_path, 1.0)
    sizes = (1, 2, 4, 8, 16, 32, 64)
    for one in found.candidates:
        assert one.design is not None
        scenario = one.design.scenario
        prices = Prices(WORKSHOP.groups(scenario)[0], Lengths.of(found.optimiser.question.trace()))
        beliefs = [prices.rra(encode, steps) for encode in sizes for steps in sizes]
        assert one.belief == pytest.approx(max(b.rate for b in beliefs if b.fits and b.latency_s <= 1.0))
        assert one.columns["judged"] < len(sizes) ** 2


@pytest.mark.parametrize("bound", [0.8, 3.0])
def test_what_it_believes_is_near_what_is_simulated(tmp_path: Path, bound: float) -> None:
    found = asked(tmp_path, bound, "[rra, waa]", top=2)
    simulated = [row for row in found.rows if row["simulated"] is not None]
    assert len(simulated) == 2
    for row in simulated:
        assert abs(row["gap"]) < 0.2 and row["simulated_latency_s"] < 1.3 * bound


def test_lengths_are_those_of_the_load() -> None:
    trace = Trace(np.zeros(4), np.array([10, 10, 30, 30]), np.array([1, 3, 3, 5]))
    lengths = Lengths.of(trace)
    assert lengths.survive.tolist() == [0.75, 0.75, 0.25, 0.25] and (lengths.prompt, lengths.last) == (20, 4)
    contexts = [11, 12, 31, 32, 31, 32, 33, 34]  # of every decoding iteration, its own token included
    assert lengths.context == pytest.approx(np.mean(contexts))


def test_who_is_rejected_is_not_served(tmp_path: Path) -> None:
    """Three in four prompts are longer than the model takes: what is left is served no faster for it."""
    path = tmp_path / "scenario.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(PLAN.format(bound=1, strategies="[rra]", top=1))["scenario"]))
    scenario = load(path)
    prompts = np.where(np.arange(256) % 4, 500, 128)
    every = Trace(np.zeros(256), prompts, np.full(256, 20))
    fitting = every.select(np.flatnonzero(prompts == 128))
    asked_of = Question(scenario, (0,))
    rates = [_served((asked_of, Design(scenario, one))).value for one in (every, fitting)]
    assert rates[0] == pytest.approx(rates[1])
