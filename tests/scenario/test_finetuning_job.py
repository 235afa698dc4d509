"""``engine.finetuning`` from the file to the summary."""

from __future__ import annotations

import pytest

from simulator.core.errors import UserError
from simulator.scenario.config import Scenario
from simulator.scenario.run import run
from simulator.scenario.source import override, parse_source
from simulator.scenario.validate import validate

BASE = """
model: meta-llama/Llama-3.1-8B
hardware: {gpu: H100-SXM, calibration: roofline}
engine: {max_num_seqs: 64, max_model_len: 8192, finetuning: {step_s: 40 ms, sequence_tokens: 4096, memory_bytes: 8GB}}
workload: {synthetic: {num_requests: 60, arrivals: {process: poisson, rate: 2}, lengths: {prompt: 200, output: 100}}}
run: {horizon_s: 20}
"""


def scenario(*settings: str) -> Scenario:
    return validate(override(parse_source(BASE), list(settings)))


def test_the_job_uses_what_requests_leave() -> None:
    plain, filled = run(scenario("engine.finetuning=null")), run(scenario())
    sliced = run(scenario("engine.finetuning={mode: time-slice, share: 0.5, sequence_tokens: 4096}"))
    assert "finetuning" not in plain.summary
    assert filled.summary["latency"]["tpot_s"]["p50"] == pytest.approx(0.04, rel=0.05)
    assert filled.setup.num_gpu_blocks < plain.setup.num_gpu_blocks
    share = filled.summary["finetuning"]["share_of_alone"]
    assert 0.6 < share < 1.0
    assert filled.summary["finetuning"]["tokens_per_s"] == pytest.approx(
        share * filled.summary["finetuning"]["alone_tokens_per_s"]
    )
    ratio = sliced.summary["latency"]["tpot_s"]["p50"] / plain.summary["latency"]["tpot_s"]["p50"]
    assert 1.9 < ratio < 2.6  # twice the step, and a few more requests in it
    busy = sliced.summary["engine"]["utilization"]
    assert sliced.summary["finetuning"]["share_of_alone"] == pytest.approx(1 - busy / 2, rel=0.02)


def test_spans_are_steps() -> None:
    runs = [run(scenario(f"run.mode={mode}")) for mode in ("span", "step")]
    assert runs[0].summary["latency"] == runs[1].summary["latency"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["engine.finetuning={share: 0.5}"], "with mode time-slice"),
        (["engine.finetuning={mode: time-slice}"], "give 'share'"),
        (["engine.lora_config={max_loras: 2}"], "not modelled together"),
        (["hardware.clock=0.8"], "not modelled together"),
        (["cluster.clocks={policy: slo-clock}"], "not modelled together"),
        (["engine.finetuning.memory_bytes=70GB"], "too little for one request"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        run(scenario(*settings))
