"""What a policy accepts: its options, the arguments it honours, and what is left to it."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.cluster.plan import single
from simulator.cluster.simulation import Simulation, simulate
from simulator.core.errors import PolicyError
from simulator.cost.analytic import FixedCost
from simulator.scheduling import POLICIES, EngineArgs, resolve
from tests.scheduling.invariants import check
from traces.trace import Trace

TRACE = Trace(np.array([0.0, 0.001, 0.002, 0.003]), np.full(4, 10), np.full(4, 5))
COST = FixedCost(0.01, 0.0)


def serve(policy: str, **arguments: object) -> None:
    args = {"max_model_len": 64, "max_num_seqs": 4, "max_num_batched_tokens": 64, **arguments}
    simulate(TRACE, EngineArgs(policy=policy, **args), COST, 100)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("policy", "options", "told"),
    [
        ("vllm", {"preemption": "swap"}, ["'vllm'", "'preemption'", "'swap'", "has no options"]),
        ("orca", {"reservatoin": "max"}, ["'orca'", "'reservatoin'", "'max'", "Did you mean 'reservation'?"]),
        ("orca", {"reservation": "orcale"}, ["'reservation'", "'orcale'", "Did you mean 'oracle'?"]),
        ("orca", {"reservation": 2}, ["'reservation' is 2", "max, oracle, pow2"]),
        ("vllm-v0", {"swap_space_gib": -1}, ["'swap_space_gib' is -1", "at least 0"]),
        ("vllm-v0", {"watermark": 1.5}, ["'watermark' is 1.5", "from 0 to 1"]),
        ("vllm-v0", {"pcie_gb_s": float("nan")}, ["'pcie_gb_s' is nan", "Give a number"]),
        ("vllm-v0", {"kv_bytes_per_token": 1.5}, ["'kv_bytes_per_token' is 1.5", "whole number"]),
        ("vllm-v0", {"preemption": "swap"}, ["needs the option kv_bytes_per_token", "131072"]),
        ("sglang", {"ignore_eos": 1}, ["'ignore_eos' is 1", "true or false"]),
        ("sglang", {"max_prefill_tokens": True}, ["'max_prefill_tokens' is True", "whole number"]),
        ("tests.scheduling.last_come:LastComeFirstServed", {"patience": 11}, ["'patience' is 11", "from 1 to 10"]),
    ],
)
def test_an_option_is_checked_by_its_policy(policy: str, options: dict[str, object], told: list[str]) -> None:
    with pytest.raises(PolicyError) as error:
        serve(policy, options=options)
    for words in told:
        assert words in str(error.value)


@pytest.mark.parametrize(
    ("policy", "arguments", "told"),
    [
        ("static", {"watermark": 0.1}, "watermark = 0.1 means nothing to it"),
        ("orca", {"enable_chunked_prefill": False}, "enable_chunked_prefill = False means nothing to it"),
        ("orca", {"enable_prefix_caching": True}, "reserves memory in one piece"),
        ("orca", {"max_model_len": 0}, "max_model_len tokens, which is not set"),
        ("static", {"max_model_len": 1 << 20}, "the KV cache holds 1584"),
        ("sarathi", {"scheduler_reserve_full_isl": False}, "means nothing to it"),
        ("fastgen", {"pipeline_parallel_size": 2}, "pipeline_parallel_size = 2 is more than it plans for"),
        ("sglang", {"scheduling_policy": "priority"}, "scheduling_policy = 'priority' means nothing to it"),
        ("sglang", {"max_num_batched_tokens": 100}, "not a multiple of block_size = 16"),
        ("sglang", {"enable_prefix_caching": False, "options": {"schedule_policy": "lpm"}}, "needs prefix caching"),
        ("tests.scheduling.last_come:Options", {}, "is not an engine policy"),
    ],
)
def test_an_argument_that_a_policy_cannot_honour_is_refused(
    policy: str, arguments: dict[str, object], told: str
) -> None:
    with pytest.raises(PolicyError) as error:
        serve(policy, **arguments)
    assert told in str(error.value)


def test_what_is_left_open_is_up_to_the_policy_and_what_is_said_stays() -> None:
    assert (resolve(EngineArgs()).async_scheduling, resolve(EngineArgs()).enable_prefix_caching) == (True, True)
    sarathi = resolve(EngineArgs(policy="sarathi"))
    assert (sarathi.async_scheduling, sarathi.enable_prefix_caching) == (False, False)
    said = resolve(EngineArgs(policy="sarathi", async_scheduling=True, enable_prefix_caching=True))
    assert (said.async_scheduling, said.enable_prefix_caching) == (True, True)
    assert resolve(said) == said


def test_a_policy_from_outside_serves() -> None:
    args = EngineArgs(policy="tests.scheduling.last_come:LastComeFirstServed", options={"patience": 3})
    run = Simulation(TRACE, single(args, COST, 100))
    records = run.run()
    check(records, TRACE, run.replicas[0].engine.state)
    assert np.argsort(records.requests.finish).tolist() == [0, 3, 2, 1]


def test_every_policy_says_what_it_decides_why_its_limits_and_where_it_is_from() -> None:
    for name, policy in POLICIES.items():
        doc = policy.__doc__ or ""
        assert all(part in doc for part in ("Decides:", "Why it helps:", "Limits:", "Reference:")), name
