"""The command that starts the recommended design says all of it, or says what it leaves out."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.planning.command import commands
from simulator.scenario.build import build_groups
from simulator.scenario.load import load

SCENARIO = """
model: Qwen/Qwen2.5-0.5B
hardware: {gpu: H100-SXM}
engine: {max_model_len: 4096, enable_prefix_caching: true}
workload: {synthetic: {num_requests: 10, arrivals: {process: poisson, rate: 20}, lengths: {prompt: 300, output: 20}}}
"""
TIER = "engine.kv_tiers=[{name: dram, capacity_bytes: 64GiB}]"
REMOTE = "engine.kv_tiers=[{name: pool, capacity_bytes: 64GiB, bandwidth: 10GB, shared: true, write: through}]"


@pytest.mark.parametrize(
    ("settings", "said", "unsaid"),
    [
        ([], "vllm serve Qwen/Qwen2.5-0.5B --max-model-len 4096", ""),
        ([TIER, "engine.block_size=64"], "--block-size 64 --kv-offloading-backend native --kv-offloading-size 64", ""),
        ([REMOTE], "vllm serve", "engine.kv_tiers"),
        (["engine.long_prefill_token_threshold=512"], "--long-prefill-token-threshold 512", ""),
    ],
)
def test_the_command_says_the_design(tmp_path: Path, settings: list[str], said: str, unsaid: str) -> None:
    path = tmp_path / "s.yaml"
    path.write_text(SCENARIO)
    scenario = load(path, settings)
    ((what, command),) = commands(scenario, build_groups(scenario))
    assert said in command
    assert (f"without {unsaid}, as the scenario has it" in what) if unsaid else "without" not in what
