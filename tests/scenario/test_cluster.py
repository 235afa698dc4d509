"""Clusters in scenarios: what a group inherits, what is refused, and that routers and groups reach the run."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.core.errors import UserError
from simulator.scenario import load, run
from simulator.scenario.build import build_cluster, build_groups
from simulator.scenario.config import Scenario
from simulator.scenario.load import to_yaml

TEXT = """
model: Llama-3.1-8B
hardware: H100-SXM
engine: {max_model_len: 8192, max_num_seqs: 48}
cluster:
  router: least-requests
  groups:
    - {name: fast, replicas: 2}
    - {name: slow, hardware: L40S, engine: {max_num_seqs: 16}}
workload: {preset: {name: azure-conv, num_requests: 60, rate: 6}}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "s.yaml"
    found.write_text(TEXT)
    return found


def test_a_group_says_what_differs_and_inherits_the_rest(path: Path) -> None:
    fast, slow = build_groups(load(path))
    assert (fast.gpu.name, fast.replicas, fast.args.max_num_seqs) == ("H100-SXM", 2, 48)
    assert (slow.gpu.name, slow.replicas, slow.args.max_num_seqs, slow.args.max_model_len) == ("L40S", 1, 16, 8192)
    assert slow.num_gpu_blocks < fast.num_gpu_blocks
    plan = build_cluster(load(path), (fast, slow))
    assert plan.router.policy == "least-requests"
    assert 0.1 < plan.groups[1].weight < 0.7 < plan.groups[0].weight == 1.0  # an L40S does so much of an H100's work


def test_a_run_names_its_groups_and_costs_all_of_them(path: Path) -> None:
    result = run(load(path))
    groups = result.summary["cluster"]["groups"]
    assert {name: group["replicas"] for name, group in groups.items()} == {"fast": 2, "slow": 1}
    assert sum(group["requests_finished"] for group in groups.values()) == 60
    prices = [group.usd_per_hour or 0.0 for group in result.groups]
    assert result.summary["cost"]["usd_per_hour"] == pytest.approx(2 * prices[0] + prices[1])


def test_what_ran_loads_and_runs_again(path: Path, tmp_path: Path) -> None:
    first = run(load(path))
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(first.scenario))
    second = run(load(again))
    assert second.provenance["scenario_sha256"] == first.provenance["scenario_sha256"]
    assert second.summary == first.summary


def test_a_number_is_short_for_equal_replicas(path: Path) -> None:
    scenario: Scenario = load(path, ["cluster=3", "cluster.router=round-robin"])
    assert scenario.cluster.replicas == 3
    assert len(run(scenario).records.replicas) == 3


@pytest.mark.parametrize(
    ("setting", "where", "words"),
    [
        ("cluster.router=least-request", "cluster.router.policy", "least-requests"),
        ("cluster.groups.1.hardware=H1000", "cluster.groups.1.hardware.gpu", "unknown GPU"),
        ("cluster.groups.1.engine.max_num_seqs=0", "cluster.groups.1.engine.max_num_seqs", "at least 1"),
        ("cluster.groups.1.engine.max_num_seq=8", "cluster.groups.1.engine.max_num_seq", "max_num_seqs"),
        ("cluster.groups.1.name=fast", "cluster", "must differ"),
        ("cluster.replicas=2", "cluster", "either 'replicas' or 'groups'"),
        ("cluster.groups.0.replicas=0", "cluster.groups.0.replicas", "at least 1"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(path: Path, setting: str, where: str, words: str) -> None:
    def build() -> None:
        scenario = load(path, [setting])
        build_cluster(scenario, build_groups(scenario))

    with pytest.raises(UserError) as error:
        build()
    assert where in str(error.value)
    assert words in str(error.value)
