"""``engine.speculative_config`` from the file to the summary."""

from __future__ import annotations

import pytest

from simulator.core.errors import UserError
from simulator.scenario.build import build_cluster, build_groups
from simulator.scenario.config import Scenario
from simulator.scenario.run import run
from simulator.scenario.source import parse_source
from simulator.scenario.validate import validate

BASE = """
model: meta-llama/Llama-3.1-8B
hardware: {gpu: H100-SXM, calibration: roofline}
engine: {max_num_seqs: 64, max_model_len: 8192, speculative_config: SPECULATIVE}
workload: {synthetic: {num_requests: 20, arrivals: {process: at_once}, lengths: {prompt: 200, output: 100}}}
"""


def scenario(speculative: str, gpu: str = "") -> Scenario:
    text = BASE.replace("SPECULATIVE", speculative).replace("roofline}", f"roofline{gpu}}}")
    return validate(parse_source(text))


SCHEDULE = "num_speculative_tokens_per_batch_size: [[2, 3, 1]]}"
EAGLE = "{method: eagle, num_speculative_tokens: 3, synthetic_acceptance_length: 2.5}"


def test_acceptance_shows_in_pace_summary_and_memory() -> None:
    fast, plain = (run(scenario(text)) for text in (EAGLE, "null"))
    tpot = [result.summary["latency"]["tpot_s"]["mean"] for result in (fast, plain)]
    assert 1.5 < tpot[1] / tpot[0] < 2.5
    assert fast.summary["speculation"]["mean_acceptance_length_run"] == pytest.approx(2.5, rel=0.03)
    assert "speculation" not in plain.summary
    assert fast.setup.num_gpu_blocks < plain.setup.num_gpu_blocks
    assert fast.summary["throughput"]["output_tokens"] == plain.summary["throughput"]["output_tokens"] == 2000
    energy = [result.summary["energy"]["joules_per_output_token"] for result in (fast, plain)]
    assert 0.3 < energy[0] / energy[1] < 1.0


@pytest.mark.parametrize(
    ("config", "rates"),
    [
        ("{method: mtp, num_speculative_tokens: 2, synthetic_acceptance_rates: [0.9, 0.5]}", (0.9, 0.5)),
        ("{method: ngram, num_speculative_tokens: 3, synthetic_acceptance_rate: 0.5}", (0.5, 0.25, 0.125)),
        (
            "{method: medusa, num_speculative_tokens: 4, tree_size: 63, synthetic_acceptance_length: 2.25}",
            (1, 0.25, 0, 0),
        ),
        (
            "{method: draft_model, model: meta-llama/Llama-3.1-8B, num_speculative_tokens: 1, synthetic_acceptance_rate: 1}",
            (1,),
        ),
    ],
)
def test_ways_to_say_what_is_accepted(config: str, rates: tuple[float, ...]) -> None:
    args = run(scenario(config)).setup.args
    assert args.speculation is not None
    assert args.speculation.rates == pytest.approx(rates)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("{method: eagle, num_speculative_tokens: 3}", "exactly one"),
        ("{method: eagle, num_speculative_tokens: 2, synthetic_acceptance_rates: [0.5]}", "1 rates for 2"),
        ("{method: eagle, num_speculative_tokens: 2, synthetic_acceptance_rates: [0.5, 0.6]}", "must not rise"),
        ("{method: eagle, num_speculative_tokens: 2, synthetic_acceptance_length: 3.5}", "at most 3"),
        ("{method: draft_model, num_speculative_tokens: 2, synthetic_acceptance_rate: 0.5}", "give one of 'model'"),
        (
            "{method: ngram, num_speculative_tokens: 2, synthetic_acceptance_rate: 0.5, quantization: fp8}",
            "ngram has none",
        ),
        ("{method: eagle, num_speculative_tokens: 2, synthetic_acceptance_rate: 0.5, draft_s: 1 ms}", "are priced"),
        (
            "{method: eagle, num_speculative_tokens: 5, tree_size: 4, synthetic_acceptance_rate: 0.5}",
            "depth of the tree",
        ),
        (
            "{method: draft_model, model: facebook/opt-13b, num_speculative_tokens: 1, synthetic_acceptance_rate: 1}",
            "cannot be verified",
        ),
        (
            "{method: mtp, num_speculative_tokens: 2, synthetic_acceptance_rate: 1, " + SCHEDULE,
            "begin at 1",
        ),
        (
            "{method: medusa, num_speculative_tokens: 4, tree_size: 500, synthetic_acceptance_rate: 0.5}",
            "max_num_seqs: 16",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(config: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        run(scenario(config))


def test_a_capped_clock_is_refused() -> None:
    with pytest.raises(UserError, match="not modelled"):
        run(scenario(EAGLE, ", clock: 0.8"))


def test_a_draft_model_s_kv_moves_with_the_request() -> None:
    text = """
model: meta-llama/Llama-3.1-70B
hardware: H100-SXM
engine: {tensor_parallel_size: 4, max_model_len: 8192, speculative_config: DRAFT}
cluster: {groups: [{name: p, role: prefill}, {name: d, role: decode}], disaggregation: {}}
workload: {synthetic: {num_requests: 4, arrivals: {process: at_once}, lengths: {prompt: 200, output: 30}}}
"""
    draft = (
        "{method: draft_model, model: meta-llama/Llama-3.1-8B, num_speculative_tokens: 3, "
        "synthetic_acceptance_rate: 0.7}"
    )
    found = []
    for config in ("null", draft):
        scenario = validate(parse_source(text.replace("DRAFT", config)))
        kv = build_cluster(scenario, build_groups(scenario)).groups[0].kv
        assert kv is not None
        found.append(kv.per_token)
    assert found == [80 * 2 * 8 * 128 * 2, (80 + 32) * 2 * 8 * 128 * 2]
