"""What a turn generates is a hit of the next one, where its prompt holds it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster.plan import single
from simulator.cluster.simulation import Simulation
from simulator.core.errors import TraceError
from simulator.cost.analytic import LinearCost
from simulator.replica.records import SimulationRecords
from simulator.scheduling import EngineArgs, resolve
from tests.cluster.test_many_replicas import same
from tests.scheduling.invariants import check
from traces.answers import heirs, with_answers
from traces.generate import Generators, Lengths, Sessions, synthesize
from traces.generate import arrivals as arrive
from traces.generate.distributions import Exponential, Fixed, Uniform
from traces.prefix import from_rows
from traces.programs import branches
from traces.trace import Trace

COST = LinearCost(0.01, 1e-4, 1e-5, 1e-7, 1e-9)


def chat(n: int = 30, seed: int = 1, **given_sessions: Any) -> Trace:
    options: dict[str, Any] = {"turns": Fixed(3), "think_time_s": Exponential(1.0)} | given_sessions
    return synthesize(
        arrivals=arrive.Poisson(0.5),
        lengths=Lengths(Uniform(20, 60), Uniform(10, 90)),
        sessions=Sessions(**options),
        num_requests=n,
        generators=Generators.of(seed),
    )


def run(trace: Trace, *, blocks: int = 4000, step_mode: bool = False, block_size: int = 16) -> SimulationRecords:
    args = EngineArgs(max_num_seqs=8, max_num_batched_tokens=128, block_size=block_size, enable_prefix_caching=True)
    built = Simulation(trace, single(resolve(args), COST, blocks), step_mode=step_mode)
    records = built.run()
    check(records, trace, built.replicas[0].engine.state)
    return records


@pytest.mark.parametrize("block_size", [4, 16, 32])
def test_a_turn_hits_all_that_was_said_before(block_size: int) -> None:
    trace = chat()
    assert trace.turn is not None
    later = trace.turn > 0
    before = heirs(trace)
    plain, hits = (run(t, block_size=block_size).requests.cached_tokens for t in (trace, with_answers(trace)))
    assert (plain[~later] == hits[~later]).all()
    for row in np.flatnonzero(before >= 0).tolist():
        unit = max(block_size, 16)
        said = int(trace.prompt_tokens[row] + trace.output_tokens[row]) - 1
        assert plain[before[row]] == int(trace.prompt_tokens[row]) // unit * unit
        assert hits[before[row]] == said // unit * unit


def test_an_edit_ends_it() -> None:
    trace = chat(200, edit_probability=1.0)
    assert trace.turn is not None
    cached = run(with_answers(trace)).requests.cached_tokens
    assert (cached <= run(trace).requests.cached_tokens).all()


def test_prompts_of_sub_agents_continue_their_own() -> None:
    rows = [[1, 2], [7, 8], [1, 2, 3], [7, 8, 9], [1, 2, 3, 4]]
    prompt = np.array([16 * len(row) for row in rows])
    trace = Trace(
        np.zeros(5),
        prompt,
        np.full(5, 20),
        session=np.zeros(5, dtype=np.int64),
        turn=np.arange(5),
        prefix=from_rows(rows, 16),
    )
    assert heirs(trace).tolist() == [2, 3, 4, -1, -1]


def test_there_must_be_conversations_and_blocks() -> None:
    with pytest.raises(TraceError, match="no session column"):
        with_answers(Trace(np.zeros(1), np.ones(1, dtype=np.int64), np.ones(1, dtype=np.int64)))


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    blocks=st.sampled_from([40, 70, 400]),
    block_size=st.sampled_from([4, 16]),
    edits=st.sampled_from([0.0, 0.3]),
    shared=st.sampled_from([0, 40]),
)
def test_spans_are_steps(seed: int, blocks: int, block_size: int, edits: float, shared: int) -> None:
    trace = with_answers(
        chat(
            20,
            seed,
            edit_probability=edits,
            shared_prefix_tokens=shared,
            think_time_s=Exponential(0.05),
            max_context_tokens=500,
        )
    )
    blocks = blocks * 16 // block_size
    same(*(run(trace, blocks=blocks, step_mode=mode, block_size=block_size) for mode in (False, True)))


def test_lines_of_thought_each_continue_their_own() -> None:
    prompts = np.array([100, 160])
    questions = Trace(np.array([0.0, 30.0]), prompts, np.array([1, 1]))
    lines = branches(questions, np.random.default_rng(0), count=3, rounds=3, round_tokens=64)
    assert lines.turn is not None
    cached = run(with_answers(lines)).requests.cached_tokens
    later = lines.turn >= 3
    np.testing.assert_array_equal(cached[later], (lines.prompt_tokens[later] - 1) // 16 * 16)
