"""Spans give what single steps give, to the bit, for every policy; and nothing is lost on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from simulator.cluster.plan import single
from simulator.cluster.simulation import Simulation
from simulator.cost.analytic import FixedCost, LinearCost
from simulator.cost.interface import Line, StepCost
from simulator.replica.records import SimulationRecords, StepRecords
from simulator.scheduling import POLICIES, EngineArgs, resolve
from tests.scheduling.invariants import check
from traces.prefix import from_rows
from traces.trace import Labels, Trace

SWAP: dict[str, object] = {"preemption": "swap", "kv_bytes_per_token": 1 << 20, "swap_space_gib": 1 / 64}
VARIANTS: list[tuple[str, dict[str, object]]] = [
    ("vllm", {}),
    ("static", {}),
    ("slices", {"slice_tokens": 6}),
    ("microbatches", {}),
    ("orca", {"reservation": "max"}),
    ("orca", {"reservation": "pow2"}),
    ("orca", {"reservation": "oracle"}),
    ("vllm-v0", {}),
    ("vllm-v0", {"watermark": 0.2}),
    ("vllm-v0", {"preemption": "swap", "kv_bytes_per_token": 1 << 20, "swap_space_gib": 1 / 64}),
    ("sarathi", {}),
    ("fastgen", {}),
    ("sglang", {}),
    ("sglang", {"schedule_policy": "lpm", "schedule_conservativeness": 0.1}),
    ("sglang", {"max_new_tokens": 30, "ignore_eos": True}),
    ("sjf", {"predictor": "log-normal"}),
    ("srpt", {"predictor": "log-normal", "sigma": 1.0}),
    ("srpt", {**SWAP, "preempt_until": 1.0}),
    ("ltr", {"starvation_steps": 4, "quantum_steps": 3}),
    ("ltr", {**SWAP, "starvation_steps": 0}),
    ("s3", {"bin_tokens": 9, "num_bins": 5, "accuracy": 0.5}),
    ("response-length", {"group_size": 5}),
    ("response-length", {"predictor": "bins", "bin_tokens": 7, "margin": 1}),
    ("fastserve", {**SWAP, "quantum_s": 0.02}),
    ("fastserve", {**SWAP, "proactive": False, "skip_join": False, "starvation_s": 0.05}),
    ("fastserve", {"preemption": "recompute", "quantum_s": 0.01}),
    ("vtc", {}),
    ("vtc", {"weights": "1, 3"}),
    ("drr", {"quantum": 20.0}),
    ("andes", {"interval_s": 0.0, "expected_ttft_s": 0.1, "horizon_s": 0.2}),
    ("andes", {**SWAP, "interval_s": 0.05, "expected_ttft_s": 0.1, "expected_tokens_per_s": 30.0}),
    ("edf", {"deadlines_s": "0.1, 1"}),
    ("aging", {"aging_s": 0.1}),
    ("exegpt", {"encode_batch": 3, "decode_steps": 5}),
    ("exegpt", {"encode_batch": 1, "decode_steps": 1}),
    ("ragcache", {"window": 3}),
]
PAGED = {name for name in POLICIES.names() if POLICIES.get(name).prefix_caching is not None}


class BentCost:
    """Bends wherever the context crosses a multiple of ``every`` tokens, and after ``valid_steps`` at the latest."""

    sliding_window: int | None = None

    def __init__(self, every: int, valid_steps: int) -> None:
        self.every, self.valid_steps = every, valid_steps

    def decode(self, num_decodes: int, context: int, windowed: int, growing: int) -> Line:
        part = context // self.every
        left = -(-((part + 1) * self.every - context) // num_decodes)
        slope = 1e-6 * (1 + part % 3)
        return Line(
            0.01 + 1e-6 * context + slope * (context % self.every), slope * num_decodes, min(left, self.valid_steps)
        )

    def mixed(
        self, num_decodes: int, context: int, windowed: int, chunks: Sequence[tuple[int, int]], num_sampled: int
    ) -> float:
        return 0.01 + 1e-6 * context + 1e-5 * num_decodes + sum(2e-5 * new + 1e-8 * new * old for new, old in chunks)


class WindowCost:
    """Every token that a layer with a sliding window reads costs a tenth of a millisecond."""

    def __init__(self, window: int) -> None:
        self.sliding_window: int | None = window

    def decode(self, num_decodes: int, context: int, windowed: int, growing: int) -> Line:
        return Line(0.01 + 1e-6 * context + 1e-4 * windowed, 1e-6 * num_decodes + 1e-4 * growing, 1 << 40)

    def mixed(
        self, num_decodes: int, context: int, windowed: int, chunks: Sequence[tuple[int, int]], num_sampled: int
    ) -> float:
        return 0.01 + 1e-6 * context + 1e-4 * windowed + sum(2e-5 * new for new, _ in chunks)


@st.composite
def traces(draw: st.DrawFn, block_size: int) -> Trace:
    """A few requests: bursts and ties, shared prefixes, all lengths."""
    n = draw(st.integers(1, 14))
    gaps = draw(st.lists(st.sampled_from([0.0, 0.0, 0.01, 0.02, 0.037, 0.5]), min_size=n, max_size=n))
    prompt = draw(st.lists(st.integers(1, 70), min_size=n, max_size=n))
    output = draw(st.lists(st.integers(1, 40), min_size=n, max_size=n))
    shared = draw(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6)), min_size=n, max_size=n))
    rows = []
    for row, (tokens, (family, common)) in enumerate(zip(prompt, shared, strict=True)):
        own = range(tokens // block_size)
        rows.append([family * 100 + i if i < common else 1000 + row * 100 + i for i in own])
    return Trace(
        arrival=np.cumsum(gaps),
        prompt_tokens=np.array(prompt),
        output_tokens=np.array(output),
        priority=np.array(draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))),
        tenant=Labels(np.array(draw(st.lists(st.integers(-1, 2), min_size=n, max_size=n))), ("a", "b", "c")),
        slo_class=Labels(np.array(draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))), ("x", "y", "z")),
        prefix=from_rows(rows, block_size),
    )


@st.composite
def costs(draw: st.DrawFn) -> StepCost:
    kind = draw(st.sampled_from(["fixed", "linear", "bent", "window"]))
    if kind == "fixed":
        return FixedCost(0.01, draw(st.sampled_from([0.0, 0.001])))
    if kind == "linear":
        return LinearCost(0.01, 1e-4, 1e-5, 1e-6, 1e-8)
    if kind == "window":
        return WindowCost(draw(st.integers(1, 80)))
    return BentCost(draw(st.sampled_from([7, 100])), draw(st.integers(1, 5)))


@st.composite
def engines(draw: st.DrawFn, policy: str, options: Mapping[str, object]) -> tuple[EngineArgs, int]:
    block_size = draw(st.sampled_from([1, 4, 16]))
    budget = draw(st.sampled_from([16, 32, 64, 512]))
    blocks = -(-draw(st.integers(110, 300)) // block_size)
    given_args: dict[str, object] = {
        "policy": policy,
        "options": options,
        "block_size": block_size,
        "max_num_seqs": draw(st.integers(1, 8)),
        "max_num_batched_tokens": budget,
        "max_model_len": 110,
        "async_scheduling": draw(st.sampled_from([None, False, True])),
    }
    if "scheduling_policy" not in POLICIES.get(policy).unused:
        given_args["scheduling_policy"] = draw(st.sampled_from(["fcfs", "fcfs", "priority"]))
    if policy in PAGED:
        given_args["enable_prefix_caching"] = (
            draw(st.booleans()) or options.get("schedule_policy") == "lpm" or policy == "ragcache"
        )
    if policy in {"vllm", "sarathi"}:
        given_args["watermark"] = draw(st.sampled_from([0.0, 0.1]))
    if policy in {"vllm", "sjf", "vtc"}:
        given_args["long_prefill_token_threshold"] = draw(st.sampled_from([0, 0, 5, 33]))
        given_args["scheduler_reserve_full_isl"] = draw(st.booleans())
    return EngineArgs(**given_args), blocks + 1  # type: ignore[arg-type]


@pytest.mark.parametrize(("policy", "options"), VARIANTS, ids=lambda value: str(value))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_spans_are_steps_and_the_invariants_hold(policy: str, options: dict[str, object], data: st.DataObject) -> None:
    args, num_gpu_blocks = data.draw(engines(policy, options))
    trace = data.draw(traces(args.block_size))
    cost = data.draw(costs())
    users = data.draw(st.sampled_from([None, None, 3]))
    runs = [
        Simulation(trace, single(args, cost, num_gpu_blocks), step_mode=step_mode, closed_loop_users=users)
        for step_mode in (False, True)
    ]
    spans, steps = (run.run() for run in runs)
    same_requests(spans, steps)
    same_steps(spans.steps, steps.steps)
    assert spans.tokens_recomputed == steps.tokens_recomputed
    for records, run in zip((spans, steps), runs, strict=True):
        check(records, trace, run.replicas[0].engine.state)
    event(f"preempted: {bool(spans.requests.preemptions.any())}")
    event(f"prefix hits: {bool(spans.requests.cached_tokens.any())}")


@pytest.mark.parametrize(("policy", "options"), VARIANTS, ids=lambda value: str(value))
def test_a_horizon_stops_both_at_the_same_point(policy: str, options: dict[str, object]) -> None:
    rng = np.random.default_rng(5)
    trace = Trace(np.cumsum(rng.exponential(0.05, 40)), rng.integers(1, 90, 40), rng.integers(1, 40, 40))
    args = EngineArgs(policy=policy, options=options, max_num_seqs=6, max_num_batched_tokens=64, max_model_len=130)
    cost = LinearCost(0.01, 1e-4, 1e-5, 1e-6)
    runs = [Simulation(trace, single(args, cost, 25), step_mode=mode, horizon_s=1.234) for mode in (False, True)]
    spans, steps = (run.run() for run in runs)
    assert 0 < np.isfinite(spans.requests.finish).sum() < 40
    same_requests(spans, steps)
    for records, run in zip((spans, steps), runs, strict=True):
        check(records, trace, run.replicas[0].engine.state, drained=False)


def test_who_ended_before_the_horizon_holds_no_blocks() -> None:
    """Asynchronous scheduling learns of an end a step later, which a span may not come to before the horizon."""
    for seed in range(60):
        rng = np.random.default_rng(seed)
        trace = Trace(np.sort(rng.random(6)) * 0.3, rng.integers(1, 40, 6), rng.integers(1, 60, 6))
        args = EngineArgs(max_num_seqs=8, max_num_batched_tokens=64, block_size=4, async_scheduling=True)
        horizon_s = float(rng.uniform(0.4, 1.0))
        spans, steps = (
            Simulation(trace, single(args, FixedCost(0.01, 0.001), 200), step_mode=mode, horizon_s=horizon_s).run()
            for mode in (False, True)
        )
        assert spans.steps.free_blocks[-1:] == steps.steps.free_blocks[-1:]


def test_every_registered_policy_is_here() -> None:
    names = {name for name in POLICIES.names() if not name.startswith("test-")}
    # Elastic ones plan steps one by one, on prices of their own: test_loongserve.py.
    names -= {"infercept"}  # needs conversations and no prefix cache: test_infercept.py
    assert {policy for policy, _ in VARIANTS} == {name for name in names if not POLICIES.get(name).elastic}
    for policy, options in VARIANTS:
        assert resolve(EngineArgs(policy=policy, options=options)).async_scheduling in (True, False)


def same_requests(spans: SimulationRecords, steps: SimulationRecords) -> None:
    for field in fields(spans.requests):
        ours, theirs = getattr(spans.requests, field.name), getattr(steps.requests, field.name)
        np.testing.assert_array_equal(ours, theirs, err_msg=field.name, strict=True)


def same_steps(spans: StepRecords, steps: StepRecords) -> None:
    """Step by step, however rows are grouped."""
    ours, theirs = expand(spans), expand(steps)
    for name, values in ours.items():
        if name in {"start", "seconds"}:
            np.testing.assert_allclose(values, theirs[name], rtol=1e-12, atol=1e-12, err_msg=name)
        else:
            np.testing.assert_array_equal(values, theirs[name], err_msg=name)


def expand(rows: StepRecords) -> dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """One entry per step. Rows of decodes say once what holds for all their steps."""
    n = rows.num_steps
    j = np.concatenate([np.arange(count) for count in n]) if len(n) else np.zeros(0)
    each = {
        name: np.repeat(getattr(rows, name), n)
        for name in ("num_decodes", "prefill_tokens", "num_prefills", "preempted", "num_running")
    }
    start, step, increment = (np.repeat(getattr(rows, name), n) for name in ("start", "step", "increment"))
    each["seconds"] = step + increment * j
    each["start"] = start + j * step + increment * j * (j - 1) / 2
    each["context"] = np.repeat(rows.context_tokens, n) + j * each["num_decodes"]
    each["token_step"] = np.where(each["num_decodes"] > 0, np.repeat(rows.first_token_step, n) + j, -1)
    return each
