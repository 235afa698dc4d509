"""``engine.cpu_offload_gb``, ``engine.offload`` and ``hardware.host`` in scenarios."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simulator.core.errors import UserError
from simulator.scenario import load, run
from simulator.scenario.setup import build

TEXT = """
model: facebook/opt-13b
hardware: {gpu: L4, host: Xeon-Gold-6136}
engine: {max_model_len: 1024, max_num_seqs: 16, max_num_batched_tokens: 1024, cpu_offload_gb: 8}
workload: {synthetic: {num_requests: 40, arrivals: {process: poisson, rate: 1}, lengths: {prompt: 200, output: 30}}}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "s.yaml"
    found.write_text(TEXT)
    return found


def test_offloaded_weights_are_read_in_every_step(path: Path) -> None:
    """8 GiB over PCIe 3 at three quarters of 16 GB/s are 716 ms, on top of the GPU's own step."""
    result = run(load(path))
    assert result.summary["requests"]["finished"] == 40
    assert result.summary["latency"]["tpot_s"]["p50"] > 8 * 1024**3 / 12e9
    with pytest.raises(UserError, match="does not fit"):
        build(load(path, ["engine.cpu_offload_gb=0"]))


@pytest.mark.parametrize(
    "offload",
    ["{weights_host: 0.5, kv_host: 1, attention: cpu}", "{weights_host: 1, cpu_share: balanced, kv_host: 0.5}"],
)
def test_spans_are_steps(path: Path, offload: str) -> None:
    settings = ["engine.cpu_offload_gb=0", f"engine.offload={offload}"]
    spans, steps = (run(load(path, [*settings, f"run.mode={mode}"])) for mode in ("span", "step"))
    np.testing.assert_array_equal(spans.records.requests.finish, steps.records.requests.finish)


@pytest.mark.parametrize(
    ("settings", "where", "words"),
    [
        (["engine.cpu_offload_gb=100"], "engine.cpu_offload_gb", "have 23.4 GiB of weights"),
        (["engine.offload={weights_host: 0.5}"], "engine.cpu_offload_gb", "by cpu_offload_gb and by offload"),
        (["hardware.clock=0.8"], "engine.offload", "locked clocks are not modelled"),
        (["cluster.clocks={policy: slo-clock}"], "engine.offload", "clocks that change are not modelled"),
        (
            ["engine.cpu_offload_gb=0", "engine.experts={cached_experts: 4}", "hardware.power_cap_w=200"],
            "engine.experts.cached_experts",
            "locked clocks are not modelled",
        ),
        (
            ["cluster={groups: [{name: a, replicas: 2, lends: true}]}", "engine.enable_prefix_caching=false"],
            "lends",
            "weights or KV outside the GPU are not modelled",
        ),
        (["engine.lora_config={max_loras: 2}"], "engine.offload", "adapters"),
        (["hardware.host=xeon"], "hardware.host", "unknown host 'xeon'"),
        (["engine.cpu_offload_gb=0", "engine.offload={kv_disk: 1}"], "offload", "has no disk"),
        (
            ["engine.cpu_offload_gb=0", "engine.offload={weights_host: 0.5, kv_host: 1}", "cluster={replicas: 2, migration: {}}"],
            "engine.offload",
            "KV outside the GPU and",
        ),
        (
            [
                "engine.cpu_offload_gb=0",
                "engine.offload={weights_host: 0.5, kv_host: 1}",
                "engine.enable_prefix_caching=true",
                "engine.kv_tiers=[{name: dram, capacity_bytes: 1GB}]",
            ],
            "engine.offload",
            "KV outside the GPU and",
        ),
        (["engine.cpu_offload_gb=0", "engine.offload={kv: 1}"], "engine.offload", "unknown field 'kv'"),
        (
            ["engine.cpu_offload_gb=0", "hardware.host=null", "engine.offload={cpu_share: balanced}"],
            "cpu_share",
            "host",
        ),
    ],
)
def test_what_is_wrong_is_named_with_its_remedy(path: Path, settings: list[str], where: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        run(load(path, settings))
    assert where in (error.value.where or "")
    assert error.value.remedy
