"""DistServe's and Splitwise's searches: what each side does alone, and the best of all ways to put them together."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

import simulator
from simulator.core.errors import UserError
from simulator.planning.optimisers import Question
from simulator.planning.optimisers.answer import Optimised
from simulator.planning.optimisers.phases import Side
from simulator.planning.optimisers.splitwise import Kind, Options, Splitwise
from simulator.scenario.load import anchored
from simulator.scenario.source import parse_source

SCENARIO = """
  model: Qwen/Qwen2.5-0.5B
  hardware: A100-SXM-80GB
  engine: {policy: vllm-v0, max_model_len: 1024, max_num_seqs: 16, enable_prefix_caching: false}
  cluster: {router: least-requests}
  workload:
    synthetic:
      num_requests: 150
      arrivals: {process: poisson, rate: 30}
      lengths: {prompt: 500, output: {distribution: uniform, low: 2, high: 60}}
  slo: {ttft_s: 0.2, tpot_s: 0.02, percentile: 90}
"""
ROOT = "\n".join(line[2:] for line in SCENARIO.splitlines())


def asked(folder: Path, head: str, old: str = "", new: str = "") -> Optimised:
    path = folder / "plan.yaml"
    text = f"{head}\nreplications: 1\ntop: 1\nscenario:{SCENARIO}"
    path.write_text(text.replace(old, new) if old else text, encoding="utf-8")
    found = simulator.plan(path)
    assert isinstance(found, Optimised)
    return found


@pytest.mark.parametrize("affinity", ["high", "low"])
def test_distserve_takes_the_best_of_each_side_and_as_many_as_the_rate_needs(tmp_path: Path, affinity: str) -> None:
    sizes = "tensor_parallel_sizes: [1, 2], pipeline_parallel_sizes: [1]"
    found = asked(tmp_path, f"optimiser: distserve\noptions: {{rate: 150, {sizes}, affinity: {affinity}}}")
    rows = [row for row in found.rows if row["rank"] is not None]
    assert len(rows) == 4  # every pair of configurations
    first = rows[0]
    if affinity == "high":  # each side by itself
        assert first["prompts_per_gpu"] == max(row["prompts_per_gpu"] for row in rows)
        assert first["answers_per_gpu"] == max(row["answers_per_gpu"] for row in rows)
    assert found.best is not None and found.best.design is not None
    prompts, answers = found.best.design.scenario.cluster.groups
    gpus = [group.engine.tensor_parallel_size for group in (prompts, answers) if group.engine is not None]
    rates = [first["prompts_per_gpu"] * gpus[0], first["answers_per_gpu"] * gpus[1]]
    if affinity == "high":
        assert [prompts.replicas, answers.replicas] == [math.ceil(150 / rate) for rate in rates]
    else:
        assert prompts.replicas == answers.replicas == math.ceil(150 / min(rates))
        network = found.best.design.scenario.cluster.network
        assert network is not None and network.placement == "interleaved"
    assert first["belief"] == pytest.approx(min(prompts.replicas * rates[0], answers.replicas * rates[1]))
    assert first["belief"] >= 150
    assert found.simulated is not None and found.simulated > 75


def test_both_sides_need_a_limit(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="limits of their own"):
        asked(tmp_path, "optimiser: distserve\noptions: {rate: 10}", "tpot_s: 0.02, ", "")


def kinds() -> dict[str, Kind]:
    scenario = anchored(parse_source(ROOT, name="s"))
    side = Side(scenario.hardware, scenario.engine)
    return {
        "A": Kind(side, 17.6, 3200.0, prompts=3.0, answers=7.0, both=2.2),
        "H": Kind(side, 38.0, 5600.0, prompts=8.0, answers=13.0, both=5.1),
        "Hcap": Kind(side, 38.0, 2800.0, answers=12.0),
    }


def optimiser(**options: object) -> Splitwise:
    scenario = anchored(parse_source(ROOT, name="s"))
    made = Splitwise(Question(scenario, (0,)), TypeAdapter(Options).validate_python(options))
    made.kinds = kinds()
    return made


@pytest.mark.parametrize(
    ("option", "budget", "take"),
    [("usd_per_hour", 200.0, "usd"), ("power_w", 30_000.0, "watts"), ("machines_total", 9, None)],
)
@pytest.mark.parametrize(("design", "first", "second"), [("AA", "A", "A"), ("HA", "H", "A"), ("HHcap", "H", "Hcap")])
def test_splitwise_finds_the_best_of_all_splits(
    option: str, budget: float, take: str | None, design: str, first: str, second: str
) -> None:
    made = optimiser(**{option: budget})
    best = min(made._fitting(design), key=made._order)
    one, other = kinds()[first], kinds()[second]
    cost = [1.0 if take is None else float(getattr(kind, take)) for kind in (one, other)]
    every = [
        min(x * one.prompts, y * other.answers)
        for x, y in itertools.product(range(12), range(12))
        if x * cost[0] + y * cost[1] <= budget
    ]
    assert best.belief == pytest.approx(max(every))


def test_splitwise_spares_what_it_is_asked_to_for_a_rate() -> None:
    made = optimiser(rate=20.0, least="power_w")
    plans = [min(made._fitting(design), key=made._order) for design in ("AA", "HH", "HHcap", "A", "H")]
    assert [(plan.many, plan.several) for plan in plans] == [(7, 3), (3, 2), (3, 2), (10, 0), (4, 0)]
    assert min(plans, key=made._order).design == "HHcap"  # 22.4 kW as H takes, and faster
    with pytest.raises(ValidationError, match="exactly one"):
        optimiser(rate=20.0, power_w=100.0)
    with pytest.raises(ValidationError, match="'least' goes with"):
        optimiser(power_w=100.0, least="machines")


def test_splitwise_simulates_its_choice(tmp_path: Path) -> None:
    found = asked(tmp_path, "optimiser: splitwise\noptions: {machines_total: 3, designs: [AA, A]}")
    assert found.best is not None and found.best.columns["machines"] == 3
    assert found.simulated is not None and found.gap is not None and -0.5 < found.gap < 1.0
