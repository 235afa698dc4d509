"""``engine.placement`` in scenarios: built, run, refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simulator.core.errors import UserError
from simulator.metrics.little import littles_law
from simulator.planning.probe import Bench
from simulator.scenario import load, run
from simulator.scenario.build import build_groups

TEXT = """
model: {name: meta-llama/Llama-2-7b-hf, dtype: float16}
hardware: A10
engine:
  max_num_batched_tokens: 2048
  max_num_seqs: 200
  placement:
    nodes:
      - {layers: [0, 16]}
      - {gpu: L4, layers: [0, 12]}
      - {gpu: L4, layers: [12, 32], count: 2}
    expected_output_tokens: 100
workload:
  synthetic: {num_requests: 80, arrivals: {process: poisson, rate: 5}, lengths: {prompt: 300, output: 100}}
slo: {ttft_s: 5}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "s.yaml"
    found.write_text(TEXT)
    return found


def test_a_cluster_of_unlike_nodes_is_one_replica_of_as_many_gpus(path: Path) -> None:
    result = run(load(path))
    setup = result.groups[0]
    assert setup.num_gpus == 4
    assert setup.gpu.name == "A10 + L4"
    assert setup.usd_per_hour == pytest.approx(1.10 + 3 * 0.44)
    assert result.summary["requests"]["finished"] == 80
    assert result.summary.get("energy") is None
    assert littles_law(result.records).relative_gap < 0.05
    again = run(load(path, ["run.mode=step"]))
    assert again.summary == result.summary


def test_a_saturated_cluster_reaches_no_more_than_its_flow_and_not_much_less(path: Path) -> None:
    """With batches as large as those that the flow counts on."""
    settings = ["workload.synthetic.arrivals.rate=1000", "workload.synthetic.num_requests=400",
                "engine.placement.typical_prompt_tokens=300", "engine.placement.typical_decodes=100"]  # fmt: skip
    result = run(load(path, settings))
    nodes = result.groups[0].nodes
    assert nodes is not None
    assert 0.6 < result.summary["throughput"]["output_tokens_per_s"] / (nodes.flow_tokens_per_s / 4) <= 1.0


@pytest.mark.parametrize("router", ["least-requests", "least-kv"])
def test_two_such_clusters_behind_a_router_share_the_load(path: Path, router: str) -> None:
    records = run(load(path, ["cluster.replicas=2", f"cluster.router={router}"])).records
    assert np.bincount(records.requests.replica, minlength=2).min() > 20
    assert (records.requests.status == 1).all()


def test_beside_a_plain_replica(path: Path) -> None:
    groups = "[{name: mixed}, {name: plain, hardware: A100-SXM-40GB, engine: {}}]"
    result = run(load(path, [f"cluster.groups={groups}", "cluster.router=capacity-weighted"]))
    counts = np.bincount(result.records.requests.replica, minlength=2)
    assert counts.min() > 10
    assert result.summary["requests"]["finished"] == 80


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["engine.placement.nodes=[{layers: [0, 16]}]"], "no way through the 32 layers"),
        (
            ["engine.placement.nodes=[{layers: [0, 32]}, {layers: [4, 8]}]"],
            "no way goes through the node with layers 4",
        ),
        (["engine.placement.nodes=[{layers: [0, 40]}]"], "has no layers 0 to 39"),
        (["engine.placement.nodes=[{layers: [8, 8]}]"], "are none"),
        (["engine.placement.nodes=[{layers: [0, 32], gpu: L4}]"], "no node has the scenario's hardware"),
        (["engine.placement.nodes=[{layers: [0, 32], region: far}]"], "region_bandwidth"),
        (["engine.placement.region_bandwidth=1e6"], "all nodes are in one region"),
        (["engine.placement.nodes=[{layers: [0, 32], gpu: L44}]"], "unknown GPU"),
        (["model=meta-llama/Llama-2-70b-hf"], "does not fit"),
        (["engine.tensor_parallel_size=2"], "do without tensor_parallel_size"),
        (["engine.enable_prefix_caching=true"], "prefixes are not kept"),
        (["engine.policy=sarathi"], "has no say"),
        (["hardware.clock=0.8"], "not modelled together"),
        (["cluster.router=predicted-latency", "cluster.replicas=2"], "needs a cost model"),
        (["model=mistralai/Mistral-7B-v0.1"], "a window"),
    ],
)
def test_what_cannot_be_is_refused(path: Path, settings: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        run(load(path, settings))


def test_what_asks_for_the_price_of_a_step_is_refused(path: Path) -> None:
    with pytest.raises(UserError, match="does not follow from the prices"):
        Bench(load(path))


def test_gpus_of_a_node_share_its_layers(path: Path) -> None:
    wide = load(path, ["engine.placement.nodes=[{layers: [0, 16], tensor_parallel_size: 2}, {layers: [16, 32]}]"])
    setup = build_groups(wide)[0]
    assert setup.nodes is not None
    first, second = setup.nodes.nodes
    assert setup.num_gpus == 3
    assert first.kv_slots > second.kv_slots
    assert first.cost.tokens_s(512, 0) < second.cost.tokens_s(512, 0)


def test_links_that_carry_nothing_are_refused(path: Path) -> None:
    nodes = "[{layers: [0, 16]}, {gpu: L4, layers: [16, 32], region: far}]"
    far = ["engine.placement.region_latency_s=0.1", "engine.placement.region_bandwidth=5"]
    with pytest.raises(UserError, match="thousandth of a token"):
        run(load(path, [f"engine.placement.nodes={nodes}", *far]))
