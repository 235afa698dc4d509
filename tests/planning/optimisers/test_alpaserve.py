"""AlpaServe: its oracle, its selection of models, and its placement simulated."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest
import yaml

from simulator import plan
from simulator.core.errors import UserError
from simulator.planning.optimisers.alpaserve import Cut, Oracle, cuts, select
from simulator.planning.optimisers.answer import Optimised


def bursts(models: int, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    arrival = np.sort(np.concatenate([np.cumsum(rng.gamma(0.1, 10.0, n)) for _ in range(models)]))
    return arrival, rng.integers(0, models, models * n)


def test_every_way_to_cut_groups_that_divide_the_cluster() -> None:
    assert set(cuts(4)) == {Cut(1, 1), Cut(1, 2), Cut(2, 1), Cut(1, 4), Cut(2, 2), Cut(4, 1)}


def test_the_oracle_passes_requests_through_stages_in_order() -> None:
    """Three at once through two stages of a second: 2, 3 and 4 s; on two such groups the third goes to the first."""
    arrival, which = np.zeros(3), np.zeros(3, dtype=np.int64)
    good, used = Oracle(arrival, which, np.ones(3), 2, 3.0)([frozenset({0})])
    assert good.tolist() == [1, 1, 0]
    assert used.tolist() == [3]
    good, used = Oracle(arrival, which, np.ones(3), 2, 3.0)([frozenset({0}), frozenset({0})])
    assert good.tolist() == [1, 1, 1]
    assert used.tolist() == [2, 1]
    good, _ = Oracle(arrival, which + 1, np.ones(3), 2, 9.0)([frozenset({0})])
    assert not good.any()


def placements(groups: int, models: int, most: int) -> Iterator[list[frozenset[int]]]:
    held = [frozenset(chosen) for size in range(most + 1) for chosen in combinations(range(models), size)]
    yield from (list(chosen) for chosen in product(held, repeat=groups))


@pytest.mark.parametrize("seed", range(4))
def test_selection_comes_near_the_best_of_all_placements(seed: int) -> None:
    """It is a heuristic: on two groups of two models out of three it loses two points at most."""
    arrival, which = bursts(3, 60, seed)
    oracle = Oracle(arrival, which, np.full(len(arrival), 0.2), 2, 1.5)
    placement, belief = select(Cut(1, 2), 2, 3, 2, oracle)
    best = max(float(oracle(held)[0].mean()) for held in placements(2, 3, 2))
    assert belief == float(oracle(placement.models)[0].mean())
    assert best - 0.02 <= belief <= best


QUESTION = """
optimiser: alpaserve
options: {gpus: 2, models: [a, b]}
replications: 1
scenario:
  model: {name: meta-llama/Llama-2-7b-hf, dtype: float16}
  hardware: V100-SXM2-32GB
  engine: {max_model_len: 1024, max_num_seqs: 64, max_num_batched_tokens: 512, enable_prefix_caching: false}
  cluster: {router: least-requests}
  workload:
    synthetic: {num_requests: 200, arrivals: {process: gamma, rate: 3, burstiness: 0.1}, lengths: {prompt: 512, output: 1}}
  slo: {e2e_s: 0.5}
"""


def answer(tmp_path: Path, **changed: object) -> Optimised:
    data = yaml.safe_load(QUESTION)
    data["scenario"] |= changed
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(data))
    found = plan(path)
    assert isinstance(found, Optimised)
    return found


def test_what_it_believes_is_what_a_simulation_finds(tmp_path: Path) -> None:
    """Forward passes one by one: its oracle leaves out little, within five of 100 of these 400 requests."""
    found = answer(tmp_path)
    assert found.best is not None
    assert 0.5 < found.best.belief < 1.0
    for at, simulated in found.found.items():
        assert simulated.value == pytest.approx(found.candidates[at].belief, abs=0.05)
    assert len(found.candidates) == 3
    assert found.belief == max(one.belief for one in found.candidates)


def test_what_is_wrong_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="on whole requests"):
        answer(tmp_path, slo={"ttft_s": 1.0})
    small = answer(tmp_path, model={"name": "meta-llama/Llama-2-70b-hf", "dtype": "float16"})
    assert small.best is None
    assert "does not fit" in small.answer
