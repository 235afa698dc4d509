"""What goes in comes out: requests, tokens, time. On plain runs, under memory pressure, with feedback, in a pipeline."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest

from simulator import native
from simulator.cluster.plan import single
from simulator.cluster.simulation import Simulation
from simulator.cost.analytic import FixedCost, LinearCost
from simulator.metrics import analyse, littles_law
from simulator.metrics.token_times import span_seconds, tokens_made
from simulator.replica.recorder import Recorder
from simulator.replica.records import SimulationRecords, Status
from simulator.scenario.load import load
from simulator.scenario.run import run
from simulator.scheduling import EngineArgs
from tests.scheduling.invariants import (
    check,
    clock_never_runs_back,
    computed_is_owed,
    ends_once,
    every_token_is_made_once,
    nobody_is_left,
)
from traces.prefix import from_rows
from traces.trace import Trace

ROOT = Path(__file__).resolve().parents[2]
N = 300
LINEAR = LinearCost(0.005, 2e-5, 1e-4, 1e-8, 1e-9)
ARGS = EngineArgs(max_num_seqs=32, max_num_batched_tokens=512, enable_prefix_caching=False, async_scheduling=False)


def mixed(*, rate: float = 15.0) -> Trace:
    rng = np.random.default_rng(0)
    return Trace(np.cumsum(rng.exponential(1 / rate, N)), rng.integers(1, 900, N), rng.integers(1, 120, N))


def conversations() -> Trace:
    """60 sessions of 5 turns that begin together, each turn a think time after the one before, sharing its blocks."""
    rng = np.random.default_rng(1)
    session, turn = np.tile(np.arange(60), 5), np.repeat(np.arange(5), 60)
    prompt = 64 * (turn + 1) + 5
    blocks = [[1000 * int(s) + k for k in range(4 * (int(t) + 1))] for s, t in zip(session, turn, strict=True)]
    think = np.where(turn == 0, np.nan, rng.exponential(2.0, N))
    arrival = np.repeat(np.arange(5.0), 60)
    output = rng.integers(1, 80, N)
    return Trace(arrival, prompt, output, session=session, turn=turn, think_time=think, prefix=from_rows(blocks, 16))


@dataclass(frozen=True)
class Case:
    trace: Callable[[], Trace]
    args: EngineArgs
    num_gpu_blocks: int = 4000
    users: int | None = None


CASES = {
    "sync": Case(mixed, ARGS),
    "async": Case(mixed, replace(ARGS, async_scheduling=True)),
    "preempting": Case(lambda: mixed(rate=40), ARGS, 260),
    "preempting async": Case(lambda: mixed(rate=40), replace(ARGS, async_scheduling=True), 260),
    "sessions": Case(conversations, replace(ARGS, enable_prefix_caching=True)),
    "closed loop": Case(mixed, ARGS, users=12),
    "closed loop async": Case(mixed, replace(ARGS, async_scheduling=True), users=12),
    "pipeline": Case(mixed, replace(ARGS, pipeline_parallel_size=3)),
    "pipeline preempting": Case(lambda: mixed(rate=40), replace(ARGS, pipeline_parallel_size=3), 260),
}


def simulation(case: Case) -> tuple[Simulation, SimulationRecords]:
    built = Simulation(case.trace(), single(case.args, LINEAR, case.num_gpu_blocks), closed_loop_users=case.users)
    return built, built.run()


@pytest.mark.parametrize("name", CASES)
def test_invariants_hold(name: str) -> None:
    built, records = simulation(CASES[name])
    assert (records.requests.preemptions.sum() > 0) == ("preempting" in name)
    if "pipeline" in name:  # its last stage idles while the first ones are full
        ends_once(records, built.trace, drained=True)
        clock_never_runs_back(records)
        nobody_is_left(built.replicas[0].engine.state)
        every_token_is_made_once(records)
        computed_is_owed(records, built.replicas[0].engine.state)
    else:
        check(records, built.trace, built.replicas[0].engine.state)


@pytest.mark.skipif(native.CORE == "compiled", reason="replaces a method of a compiled class")
@pytest.mark.parametrize("name", CASES)
def test_rows_are_the_same_however_often_they_are_put_away(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, whole = simulation(CASES[name])
    for room in ("engine", "pipeline"):
        monkeypatch.setattr(f"simulator.replica.{room}.BUFFER", 100)
    sizes: list[int] = []
    flush = Recorder.flush

    def measured(recorder: Recorder) -> None:
        sizes.append(max(len(recorder.mixed_buffer), len(recorder.span_buffer)))
        flush(recorder)

    monkeypatch.setattr(Recorder, "flush", measured)
    _, records = simulation(CASES[name])
    assert len(sizes) > 10
    assert max(sizes) <= 100 + 10  # and one row
    for field in fields(records.steps):
        np.testing.assert_array_equal(getattr(records.steps, field.name), getattr(whole.steps, field.name))


@pytest.mark.parametrize("name", ["sync", "async", "preempting"])
def test_steps_added_one_by_one_end_where_the_closed_form_says(name: str) -> None:
    """Also where each step of a span takes longer than the one before."""
    case = CASES[name]
    runs = [
        Simulation(case.trace(), single(case.args, LINEAR, case.num_gpu_blocks), sequential=s).run()
        for s in (False, True)
    ]
    np.testing.assert_allclose(runs[1].requests.finish, runs[0].requests.finish, rtol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_limits_are_limits(name: str) -> None:
    case = CASES[name]
    _, records = simulation(case)
    steps, args = records.steps, case.args
    assert (steps.num_running <= args.max_num_seqs).all()
    assert (steps.num_decodes + steps.num_prefills <= steps.num_running).all()
    assert (steps.num_decodes + steps.prefill_tokens <= args.max_num_batched_tokens).all()
    assert (steps.free_blocks >= 0).all()
    assert (steps.free_blocks < case.num_gpu_blocks).all()
    assert steps.num_running.max() >= 8  # the runs are busy ones
    output = int(records.requests.output_tokens.sum())
    at_once = args.pipeline_parallel_size  # batches in flight
    assert output / records.end <= args.max_num_seqs * at_once / LINEAR.base


@pytest.mark.parametrize("name", [name for name in CASES if "pipeline" not in name])
def test_littles_law(name: str) -> None:
    """L from the steps, lambda W from the requests. An asynchronous engine admits up to a step before the step begins;
    a preempted request waits while it is not running. Both make W the larger side."""
    _, records = simulation(CASES[name])
    law = littles_law(records)
    longest = float((records.steps.step + records.steps.increment * records.steps.num_steps).max())
    early = N * longest / records.end if CASES[name].args.async_scheduling else 0.0
    assert early < 0.06 * law.l_running
    if "preempting" in name:
        assert law.lambda_w > 1.001 * law.l_running
    else:
        assert -1e-9 < law.lambda_w - law.l_running <= early + 1e-9


def test_time_is_what_the_price_list_says() -> None:
    """A saturated engine spends exactly the price of its steps and tokens, and is done when it has."""
    trace = replace(mixed(), arrival=np.zeros(N))
    cost = FixedCost(0.004, 3e-5)
    built = Simulation(trace, single(replace(ARGS, async_scheduling=True), cost, 4000))
    records = built.run()
    steps = records.steps
    tokens = int((steps.num_decodes * steps.num_steps + steps.prefill_tokens).sum())
    assert tokens == int((trace.prompt_tokens + trace.output_tokens - 1).sum())
    price = cost.base_s * int(steps.num_steps.sum()) + cost.per_token_s * tokens
    assert float(span_seconds(steps).sum()) == pytest.approx(price, rel=1e-9)
    assert records.end == pytest.approx(price, rel=1e-9)


SHIPPED = [
    ("quickstart.yaml", ["workload.preset.num_requests=400"]),
    ("synthetic-sessions.yaml", ["workload.synthetic.num_requests=300"]),
    ("quickstart.yaml", ["workload.preset.num_requests=300", "workload.closed_loop={users: 16}"]),
]


@pytest.mark.parametrize(("name", "settings"), SHIPPED)
def test_shipped_scenarios_obey_littles_law_and_make_every_token(name: str, settings: list[str]) -> None:
    found = run(load(ROOT / "scenarios" / name, settings))
    records = found.records
    requests = records.requests
    assert (requests.status == Status.FINISHED).all()
    made = tokens_made(analyse(records).ranges, len(requests.status))
    np.testing.assert_array_equal(made, requests.output_tokens)
    law = littles_law(records)
    assert law.l_running > 1
    assert law.relative_gap < 0.02  # asynchronous scheduling: up to a step per request
    traffic = found.summary["throughput"]
    assert traffic["output_tokens"] == requests.output_tokens.sum()
    assert traffic["finished_requests"] == len(requests.status)


def test_a_real_trace_obeys_littles_law(shared_data: Path) -> None:
    path = shared_data / "traces" / "azure-2023" / "AzureLLMInferenceTrace_conv.csv.gz"
    if not path.is_file():
        pytest.skip(f"{path.name} is not on this machine")
    settings = [f"workload.trace.path={path}", "workload.transforms=[{head: 1500}]", "engine.async_scheduling=false"]
    records = run(load(ROOT / "scenarios" / "azure-conv.yaml", settings)).records
    assert (records.requests.status == Status.FINISHED).all()
    assert littles_law(records).relative_gap < 1e-9
