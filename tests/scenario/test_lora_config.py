"""``engine.lora_config`` and the transform ``adapters``, from the file to the result."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.core.errors import TraceError, UserError
from simulator.scenario.config import Scenario
from simulator.scenario.result import Result
from simulator.scenario.run import run
from simulator.scenario.source import override, parse_source
from simulator.scenario.trace import make_trace
from simulator.scenario.validate import validate
from traces.adapters import with_adapters

BASE = """
model: meta-llama/Llama-3.1-8B
hardware: {gpu: H100-SXM, calibration: roofline}
engine: {max_num_seqs: 64, max_model_len: 8192}
workload:
  synthetic: {num_requests: 60, arrivals: {process: at_once}, lengths: {prompt: 200, output: 50}}
  transforms: [{adapters: {count: 20, zipf: 1.0}}]
"""


def scenario(*settings: str) -> Scenario:
    return validate(override(parse_source(BASE), list(settings)))


def result(lora: str, *settings: str) -> Result:
    return run(scenario(f"engine.lora_config={lora}", *settings))


def test_adapters_cost_time_and_memory_only_where_they_are_configured() -> None:
    plain, few, many = result("null"), result("{max_loras: 4}"), result("{max_loras: 32}")
    assert many.setup.num_gpu_blocks < few.setup.num_gpu_blocks < plain.setup.num_gpu_blocks
    e2e = [r.summary["latency"]["e2e_s"]["mean"] for r in (plain, many, few)]
    assert e2e[0] < e2e[1] < e2e[2]  # with four slots the others wait
    paged = result("{unified_paging: true}")
    assert paged.setup.num_gpu_blocks == plain.setup.num_gpu_blocks
    assert plain.summary["latency"]["e2e_s"]["mean"] < paged.summary["latency"]["e2e_s"]["mean"] < e2e[2]


def test_the_model_as_it_is_pays_for_the_slots_alone() -> None:
    requests = {"workload.transforms": "[]"}
    settings = [f"{path}={value}" for path, value in requests.items()]
    without, slots = (result(lora, *settings) for lora in ("null", "{max_loras: 32}"))
    assert without.summary["latency"] == slots.summary["latency"]


def test_adapters_are_drawn_by_popularity_or_come_in_turn() -> None:
    trace = make_trace(scenario().workload, 1)
    assert trace.adapter is not None
    assert trace.adapter.names[0] == "adapter-00"
    many = with_adapters(trace.select(np.zeros(20_000, dtype=np.int64)), 4, np.random.default_rng(0), zipf=1.0)
    assert many.adapter is not None
    shares = np.bincount(many.adapter.codes) / 20_000
    np.testing.assert_allclose(shares, np.array([12, 6, 4, 3]) / 25, atol=0.02)
    turn = with_adapters(trace, 7, np.random.default_rng(0), in_turn=True, merged=True)
    assert turn.adapter is not None
    assert turn.adapter.codes.tolist() == [i % 7 for i in range(60)]
    assert turn.model is turn.adapter
    with pytest.raises(TraceError, match="count must be"):
        with_adapters(trace, 0, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (["engine.lora_config={}"], "give max_loras"),
        (["engine.lora_config={max_loras: 2, ranks: [64]}"], "exceed max_lora_rank"),
        (["engine.lora_config={max_loras: 2, merge_credit: 8}"], "nothing is merged"),
        (["engine.lora_config={max_loras: 2, merge_pauses: true}"], "nothing is merged"),
        (["engine.lora_config={max_loras: 4000}"], "too little for one request"),
        (["engine.lora_config={max_loras: 4}", "engine.policy=sarathi"], "engine policy vllm"),
        (
            ["engine.lora_config={unified_paging: true}", "engine.num_gpu_blocks_override=513"],
            "an adapter of rank 16 and one request",
        ),
        (["workload.transforms=[{adapters: {count: 3, zipf: 1, in_turn: true}}]"], "leave 'zipf' out"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: list[str], says: str) -> None:
    with pytest.raises(UserError, match=says):
        run(scenario(*settings))


def test_requests_that_move_with_their_kv_are_refused() -> None:
    moving = ["engine.lora_config={max_loras: 4}", "cluster={replicas: 2, migration: {}}"]
    with pytest.raises(UserError, match="adapters and migration"):
        run(scenario(*moving))
