"""Disaggregation and the network in scenarios: what reaches the cluster, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from simulator.core.errors import UserError
from simulator.model.catalogue import model
from simulator.replica.records import Status
from simulator.scenario import load, run
from simulator.scenario.build import build_cluster, build_groups
from simulator.scenario.setup import build

TEXT = """
model: Llama-3.1-8B
hardware: H100-SXM
engine: {max_model_len: 8192, max_num_seqs: 48}
cluster:
  groups:
    - {name: prefill, role: prefill, engine: {max_model_len: 8192, tensor_parallel_size: 2}}
    - {name: decode, role: decode, replicas: 2}
workload: {preset: {name: azure-conv, num_requests: 60, rate: 6}}
"""


GROUPS = TEXT[TEXT.index("  groups") : TEXT.index("workload")]


def scenario(tmp_path: Path, *changes: tuple[str, str]) -> Path:
    text = TEXT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = tmp_path / "s.yaml"
    path.write_text(text)
    return path


def test_roles_alone_disaggregate(tmp_path: Path) -> None:
    result = run(load(scenario(tmp_path)))
    transfers = result.records.transfers
    assert transfers is not None
    many = result.trace.output_tokens > 1
    assert len(transfers.start) == many.sum()
    assert set(transfers.source.tolist()) == {0}
    assert set(transfers.target.tolist()) == {1, 2}
    # 2 (K and V) x 8 heads x 128 numbers x 2 bytes x 32 layers
    np.testing.assert_allclose(np.sort(transfers.num_bytes), np.sort(result.trace.prompt_tokens[many]) * 131072.0)
    assert result.cluster.topology is not None
    assert [place.nodes for place in result.cluster.topology.places] == [(0, 0), (0,), (0,)]
    assert all("link" in name for name in result.records.link_bytes)  # one node: NVLink


def test_the_network_of_a_scenario_is_the_one_that_carries(tmp_path: Path) -> None:
    network = "{gpus_per_node: 2, bandwidth: 10GB, latency_s: 1 ms, efficiency: 0.5}"
    result = run(load(scenario(tmp_path, ("cluster:\n", f"cluster:\n  network: {network}\n"))))
    transfers = result.records.transfers
    assert transfers is not None
    assert all("nic" in name for name in result.records.link_bytes)
    rate = transfers.num_bytes / (transfers.end - transfers.start - 1e-3)
    assert rate.max() == pytest.approx(5e9)  # one NIC on the decode side
    assert (rate <= 5e9 * (1 + 1e-9)).all()


def test_a_tensor_parallel_group_that_spans_nodes_pays_for_the_network(tmp_path: Path) -> None:
    seconds = {}
    for gpus in (1, 2, 8):
        text = f"""
model: Llama-3.1-8B
hardware: {{gpu: H100-SXM, calibration: roofline}}
engine: {{tensor_parallel_size: 2}}
cluster: {{network: {{gpus_per_node: {gpus}, bandwidth: 12.5GB}}}}
workload: {{preset: {{name: azure-conv, num_requests: 6, rate: 6}}}}
"""
        (tmp_path / "s.yaml").write_text(text)
        cost = build(load(tmp_path / "s.yaml")).cost
        seconds[gpus] = cost.mixed(0, 0, 0, [(2048, 0)], 1)
    # 2 all-reduces of 2048 tokens x 4096 numbers x 2 bytes per layer, over 12.5 instead of 450 GB/s
    assert seconds[2] == seconds[8]
    least = 2 * 32 * 2048 * 4096 * 2 * (1 / 12.5e9 - 1 / 450e9)
    assert seconds[1] - seconds[2] > least


def test_windows_and_states_are_not_kv_of_every_token(tmp_path: Path) -> None:
    """gpt-oss-20b: half of its 24 layers see 128 tokens. 8 heads x 64 numbers x 2 x 2 bytes a layer and token."""
    assert model("openai/gpt-oss-20b").num_layers == 24
    path = scenario(tmp_path, ("Llama-3.1-8B", "openai/gpt-oss-20b"))
    loaded = load(path)
    kv = build_cluster(loaded, build_groups(loaded)).groups[0].kv
    assert kv is not None
    assert kv.of(1000) == (1000 + 128) * 12 * 2048
    assert kv.between(500, 1000) == 500 * 12 * 2048


REFUSED = {
    "unknown router": ("cluster:\n", "cluster:\n  disaggregation: {decode_router: nowhere}\n", "decode_router"),
    "layerwise pull": ("cluster:\n", "cluster:\n  disaggregation: {layerwise: true}\n", "transfer: push"),
    "another model": ("role: decode,", "role: decode, model: Qwen/Qwen3-8B,", "read each other's KV"),
    "another kv dtype": (
        "role: decode,",
        "role: decode, model: {name: Llama-3.1-8B, kv_cache_dtype: fp8},",
        "read each other's KV",
    ),
    "no decode": ("role: decode,", "role: prefill,", "roles prefill and decode"),
    "no such group": ("cluster:\n", "cluster:\n  network: {regions: {prefil: eu}}\n", "no group 'prefil'"),
    "no link": ("cluster:\n", "cluster:\n  network: {regions: {prefill: eu, decode: us}}\n", "no link between"),
    "nothing moves": (
        GROUPS,
        "  replicas: 2\n  network: {node_bandwidth: 1GB}\n",
        "node_bandwidth",
    ),
    "two ways to move": ("cluster:\n", "cluster:\n  migration: {}\n", "migration and disaggregation are not"),
    "policy": ("role: decode,", "role: decode, engine: {policy: orca, max_model_len: 8192},", "'orca' reserves"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str, tmp_path: Path) -> None:
    old, new, told = REFUSED[name]
    with pytest.raises(UserError) as found:
        run(load(scenario(tmp_path, (old, new))))
    assert told in str(found.value)


def test_regions_with_a_link_work(tmp_path: Path) -> None:
    network = "{regions: {prefill: eu, decode: us}, links: [{between: [us, eu], bandwidth: 1GB, latency_s: 40 ms}]}"
    result = run(load(scenario(tmp_path, ("cluster:\n", f"cluster:\n  network: {network}\n"))))
    transfers = result.records.transfers
    assert transfers is not None
    assert (transfers.end - transfers.start).min() > 0.04
    assert "wan eu to us" in result.records.link_bytes


SCENARIOS = Path(__file__).resolve().parents[2] / "scenarios" / "cluster"
SHIPPED = ["3p5d-h100", "migrating-llumnix", *(p.stem for p in sorted(SCENARIOS.glob("disaggregated-*.yaml")))]


@pytest.mark.parametrize("name", SHIPPED)
def test_the_scenarios_that_ship_run(name: str) -> None:
    loaded = load(SCENARIOS / f"{name}.yaml")
    preset = loaded.workload.preset
    assert preset is not None
    small = replace(loaded, workload=replace(loaded.workload, preset=replace(preset, num_requests=150)))
    result = run(small)
    assert (result.records.requests.status == Status.FINISHED).all()
    transfers = result.records.transfers
    assert transfers is not None
    if "migrating" not in name:
        assert len(transfers.start) > 0.8 * (result.trace.output_tokens > 1).sum()


def test_requests_move_in_a_scenario_with_migration(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("""
model: Llama-3.1-8B
hardware: H100-SXM
engine: {max_model_len: 4096, num_gpu_blocks_override: 400, enable_prefix_caching: false}
cluster:
  replicas: 3
  migration: {interval_s: 0.2, out_below_tokens: 100, in_above_tokens: 150}
  network: {gpus_per_node: 1, bandwidth: 10GB, efficiency: 1.0}
workload: {preset: {name: azure-conv, num_requests: 300, rate: 30}}
""")
    result = run(load(tmp_path / "s.yaml"))
    transfers = result.records.transfers
    assert transfers is not None
    assert len(transfers.start) > 3
    assert set(transfers.kind) == {"migration"}
    assert (result.records.requests.status != Status.IN_FLIGHT).all()
    assert result.summary["cluster"]["transfers"]["migration"]["count"] == len(transfers.start)
