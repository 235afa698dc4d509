"""``engine.experts``, ``hardware.kernel_speed`` and programs in scenarios: what would be ignored is refused."""

from __future__ import annotations

import pytest

from simulator.core.errors import ScenarioError
from simulator.scenario import run
from simulator.scenario.source import override, parse_source
from simulator.scenario.validate import validate

TEXT = """
model: mistralai/Mixtral-8x7B-v0.1
hardware: {gpu: RTX-A5000}
engine: {max_model_len: 1024, max_num_seqs: 4, max_num_batched_tokens: 1024, gpu_memory_utilization: 0.97, experts: {cached_experts: 1.5, eviction: popular}}
workload: {synthetic: {num_requests: 3, arrivals: {process: at_once}, lengths: {prompt: 32, output: 4}}}
"""


def test_fewer_cached_experts_are_slower_and_spans_are_steps() -> None:
    source = parse_source(TEXT)
    few = run(validate(override(source, ["engine.experts.cached_experts=0.5"])))
    more = run(validate(source))
    steps = run(validate(override(source, ["run.mode=step"])))
    assert few.records.end > more.records.end
    assert more.records.requests.finish.tolist() == steps.records.requests.finish.tolist()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("engine.experts={eviction: popular}", "give 'cached_experts'"),
        ("engine.experts={cached_experts: 1, on_miss: compute, prefetch: 0.5}", "nothing to 'prefetch'"),
        ("engine.experts={cached_experts: 1, on_miss: compute}", "needs 'cpu_flops'"),
        ("engine.experts={cached_experts: 1, cpu_flops: 1.0e12}", "on_miss"),
        ("hardware.kernel_speed={gemm_max_tokens: 8}", "bounds 'gemm'"),
        (
            "workload.transforms=[{branches: {count: 2, rounds: 2, round_tokens: 8, stop_rounds: 2}}]",
            "give 'stop_share'",
        ),
    ],
)
def test_what_would_be_ignored_is_refused(setting: str, words: str) -> None:
    with pytest.raises(ScenarioError, match=words):
        validate(override(parse_source(TEXT), [setting]))
