"""Data and expert parallelism, and slices of GPUs, in scenarios."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simulator.cluster.prediction import LinearPredictor
from simulator.core.errors import UserError
from simulator.scenario import load, run
from simulator.scenario.build import build_cluster, build_groups
from simulator.scenario.setup import build

TEXT = """
model: Qwen/Qwen3-30B-A3B
hardware: H100-SXM
engine: {max_model_len: 8192, max_num_seqs: 64, data_parallel_size: 4, enable_expert_parallel: true}
workload: {preset: {name: azure-conv, num_requests: 200, rate: 40}}
"""
SHIPPED = Path(__file__).resolve().parents[2] / "scenarios" / "cluster" / "deepseek-dp-ep.yaml"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "s.yaml"
    found.write_text(TEXT)
    return found


def test_a_replica_of_four_ranks_is_four_gpus_with_four_caches(path: Path) -> None:
    result = run(load(path))
    setup = result.groups[0]
    assert setup.num_gpus == 4
    assert result.records.num_gpu_blocks == (4 * (setup.num_gpu_blocks - 1) + 1,)
    assert result.summary["requests"]["finished"] == 200
    assert setup.gpu.price_per_hour is not None
    assert setup.usd_per_hour == pytest.approx(4 * setup.gpu.price_per_hour)
    assert result.records.replicas[0].num_gpus == 4
    again = run(load(path, ["run.mode=step"]))
    np.testing.assert_array_equal(again.records.requests.finish, result.records.requests.finish)


def test_ranks_do_the_work_of_as_many(path: Path) -> None:
    """A router's weights, and what it predicts of a queue: four ranks work on it."""
    setups = [build_groups(load(path, [f"engine.data_parallel_size={n}"]))[0] for n in (1, 4)]
    groups = [build_cluster(load(path), [setup]).groups[0] for setup in setups]
    predicted = LinearPredictor(groups, [0, 1]).seconds_per_prompt_token
    assert 2.5 < predicted[0] / predicted[1] <= 4.0


@pytest.mark.parametrize("router", ["least-requests", "predicted-latency", "prefix-aware"])
def test_two_such_replicas_share_the_load(path: Path, router: str) -> None:
    records = run(load(path, ["cluster.replicas=2", f"cluster.router={router}"])).records
    counts = np.bincount(records.requests.replica, minlength=2)
    assert counts.min() > 40


@pytest.mark.parametrize(
    ("settings", "where", "words"),
    [
        (["model=Llama-3.1-8B"], "data_parallel_size", "cluster.replicas: 4"),
        (["engine.pipeline_parallel_size=2"], "data_parallel_size", "pipeline_parallel_size)"),
        (["engine.enable_expert_parallel=false", "engine.expert_skew=1"], "expert_skew", "enable_expert_parallel"),
        (["engine.num_redundant_experts=4"], "num_redundant_experts", "enable_eplb"),
        (["engine.data_parallel_size=0"], "engine.data_parallel_size", "at least 1"),
        (["engine.all2all_backend=deepep"], "engine.all2all_backend", "deepep_low_latency"),
        (["hardware=H100-SXM/3g.40gb"], "tensor_parallel_size", "cluster.replicas"),
        (["hardware=H100-SXM/3g.50gb"], "hardware.gpu", "3g.40gb"),
        (["hardware.power_cap_w=500"], "data_parallel_size", "power caps"),
    ],
)
def test_what_is_wrong_is_named_with_its_remedy(path: Path, settings: list[str], where: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        run(load(path, settings))
    assert where in (caught.value.where or "")
    assert words in str(caught.value)


def test_a_slice_serves_a_small_model(path: Path) -> None:
    settings = ["model=Qwen/Qwen3-0.6B", "engine.data_parallel_size=1", "engine.enable_expert_parallel=false"]
    whole, part = (run(load(path, [*settings, f"hardware={name}"])) for name in ("H100", "H100/3g.40gb"))
    assert part.groups[0].num_gpu_blocks < 0.55 * whole.groups[0].num_gpu_blocks
    assert "H100-SXM" in part.provenance["calibration"]["name"]
    assert part.groups[0].usd_per_hour == pytest.approx(0.5 * (whole.groups[0].usd_per_hour or 0))
    gaps = [np.median(r.records.requests.finish - r.records.requests.first_token) for r in (whole, part)]
    assert 1.0 < gaps[1] / gaps[0] < 3.0


def test_the_shipped_scenario_shows_what_it_is_about() -> None:
    """Skewed experts slow every token; copies of the popular ones bring most of it back."""
    few = ["workload.preset.num_requests=500"]
    plain = ["engine.enable_eplb=false", "engine.num_redundant_experts=0"]

    def tpot(*settings: str) -> float:
        requests = run(load(SHIPPED, [*few, *settings])).records.requests
        return float(np.nanmean((requests.finish - requests.first_token) / np.maximum(requests.output_tokens - 1, 1)))

    even, skewed, balanced = tpot(*plain, "engine.expert_skew=0"), tpot(*plain), tpot("engine.eplb_step_interval=40")
    assert skewed > 1.1 * even
    assert balanced < even + 0.5 * (skewed - even)
    assert build(load(SHIPPED)).num_gpus == 8


SHARED = """
model: Qwen/Qwen3-0.6B
hardware: H100-SXM
engine: {max_model_len: 8192, gpu_memory_utilization: 0.45}
cluster:
  groups:
    - {name: small, serves: small}
    - {name: large, serves: large, model: Llama-3.1-8B, shares: small}
workload: {trace: {path: two.csv, format: table}}
"""


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    rows = [f"{i * 0.05:.2f},{200 + 7 * i},{20 + i % 9},{('small', 'large')[i % 2]}" for i in range(100)]
    (tmp_path / "two.csv").write_text("\n".join(["arrival,prompt_tokens,output_tokens,model", *rows]))
    found = tmp_path / "shared.yaml"
    found.write_text(SHARED)
    return found


def test_two_models_on_one_gpu_are_paid_for_once_and_wait_for_each_other(shared: Path) -> None:
    together = run(load(shared))
    apart = run(load(shared, ["cluster.groups.1.shares=null"]))
    assert together.summary["requests"]["finished"] == 100
    assert together.summary["cost"]["usd_per_hour"] == pytest.approx(0.5 * apart.summary["cost"]["usd_per_hour"])
    assert together.groups[0].num_gpu_blocks == apart.groups[0].num_gpu_blocks
    slower = together.records.requests.finish - apart.records.requests.finish
    assert slower.mean() > 0
    idle = [result.summary["energy"]["idle_kwh"] / result.records.end for result in (together, apart)]
    assert idle[0] == pytest.approx(0.5 * idle[1], rel=0.01)
    assert together.summary["energy"]["kwh"] < apart.summary["energy"]["kwh"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["engine.gpu_memory_utilization=0.6"], "such as 0.46"),
        (["cluster.groups.1.shares=larger"], "Name one of: small"),
        (["cluster.groups.1.hardware=H200-SXM"], "same hardware"),
        (["cluster.groups.1.engine.tensor_parallel_size=2"], "same hardware"),
        (["cluster.groups.1.engine.data_parallel_size=2"], "data-parallel ranks are not"),
    ],
)
def test_what_cannot_share_gpus_is_told_why(shared: Path, settings: list[str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        run(load(shared, settings))
    assert words in str(caught.value)


CUT = """
model: Llama-3.1-8B
hardware: H100-SXM
engine: {max_model_len: 32768, max_num_seqs: 64, prefill_context_parallel_size: 4}
workload: {preset: {name: azure-conv, num_requests: 200, rate: 20}}
"""


@pytest.mark.parametrize("policy", ["vllm", "sarathi"])
def test_ranks_that_share_contexts_are_one_engine_with_one_cache(tmp_path: Path, policy: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(CUT)
    settings = [f"engine.policy={policy}"]
    one, cut = (run(load(path, [*settings, f"engine.prefill_context_parallel_size={n}"])) for n in (1, 4))
    setup = cut.groups[0]
    assert setup.num_gpus == 4
    assert setup.args.block_size == 64
    held = [r.groups[0].num_gpu_blocks * r.groups[0].args.block_size for r in (one, cut)]
    assert held[1] / held[0] == pytest.approx(4.0, rel=0.05)
    assert cut.summary["latency"]["ttft_s"]["mean"] < one.summary["latency"]["ttft_s"]["mean"]
    stepwise = run(load(path, [*settings, "run.mode=step"])).records.requests
    for name in ("first_token", "finish"):
        np.testing.assert_array_equal(getattr(stepwise, name), getattr(cut.records.requests, name))


def test_prompts_on_several_ranks_hand_over_to_replicas_of_one(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    groups = "{name: p, role: prefill}, {name: d, role: decode, replicas: 2, engine: {prefill_context_parallel_size: 1}}"
    path.write_text(CUT + f"cluster: {{groups: [{groups}], disaggregation: {{}}}}\n")
    result = run(load(path))
    assert [setup.num_gpus for setup in result.groups] == [4, 1]
    assert result.summary["requests"]["finished"] == 200


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["engine.pipeline_parallel_size=2"], "and pipeline stages are not"),
        (["engine.kv_tiers=[{name: dram, capacity_bytes: 10GB}]"], "prefill context ranks"),
        (["engine.decode_context_parallel_size=2"], "1 copies of a KV head"),
        (["engine.context_parallel_layout=zigzag"], "striped, contiguous"),
    ],
)
def test_what_contexts_cannot_be_cut_with_is_told(tmp_path: Path, settings: list[str], words: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(CUT)
    with pytest.raises(UserError, match=words):
        run(load(path, settings))
