"""Chunks side by side: attention within each, everything else as before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster.plan import ClusterPlan, Group
from simulator.cluster.simulation import Simulation
from simulator.core.errors import ScenarioError
from simulator.cost.analytic import LinearCost
from simulator.replica.records import SimulationRecords
from simulator.scheduling import EngineArgs, resolve
from simulator.scheduling.parallel_chunks import Bounds
from tests.cluster.test_many_replicas import same
from tests.scheduling.invariants import check
from traces.trace import Chunks, Trace

QUADRATIC = LinearCost(0.01, 1e-5, 1e-5, 1e-8, 1e-7)


def rag(documents: Sequence[Sequence[int]], *, gap_s: float = 1.0, question: int = 10) -> Trace:
    offsets = np.concatenate(([0], np.cumsum([len(row) for row in documents])))
    tokens = np.array([n for row in documents for n in row], dtype=np.int64)
    chunks = Chunks(offsets, np.arange(len(tokens)), tokens)
    n = len(documents)
    output = np.full(n, 5)
    return Trace(np.linspace(0.0, gap_s * (n - 1), n), chunks.totals() + question, output, chunks=chunks)


def run(
    trace: Trace, *, parallel: bool = True, budget: int = 4096, step_mode: bool = False, **args: object
) -> SimulationRecords:
    given_args = resolve(EngineArgs(max_num_seqs=4, max_num_batched_tokens=budget, async_scheduling=False, **args))  # type: ignore[arg-type]
    group = Group(given_args, QUADRATIC, 400, parallel_chunks=parallel)
    built = Simulation(trace, ClusterPlan((group,)), step_mode=step_mode)
    records = built.run()
    check(records, trace, built.replicas[0].engine.state)
    return records


def test_pieces_end_where_chunks_do() -> None:
    bounds = Bounds(np.array([0, 3, 3]), np.array([10, 20, 5]))
    assert bounds.pieces(0, 0, 40) == [(10, 0), (20, 0), (5, 0), (5, 35)]
    assert bounds.pieces(0, 15, 10) == [(10, 5)]
    assert bounds.pieces(0, 25, 8) == [(5, 15), (3, 0)]
    assert bounds.pieces(0, 36, 2) == [(2, 36)]
    assert bounds.pieces(1, 0, 7) == [(7, 0)]


def test_a_prompt_costs_the_sum_of_its_chunks_and_a_question_that_sees_them_all() -> None:
    trace = rag([[300, 300, 300]])
    whole, apart = (run(trace, parallel=p).requests.first_token[0] for p in (False, True))
    assert whole == pytest.approx(QUADRATIC.mixed(0, 0, 0, [(910, 0)], 1))
    assert apart == pytest.approx(QUADRATIC.mixed(0, 0, 0, [(300, 0)] * 3 + [(10, 900)], 1))
    # In chunks of the token budget, too: what was computed of a document before is attended to.
    cut = run(trace, budget=256)
    steps = [[(256, 0)], [(44, 256), (212, 0)], [(88, 212), (168, 0)], [(132, 168), (10, 900)]]
    assert cut.requests.first_token[0] == pytest.approx(sum(QUADRATIC.mixed(0, 0, 0, s, 1) for s in steps), rel=1e-6)
    assert cut.steps.num_prefills.max() == 1


def test_one_chunk_is_a_plain_prompt() -> None:
    trace = rag([[500]], question=1)
    one, plain = (run(trace, parallel=p).requests.first_token[0] for p in (True, False))
    assert one == pytest.approx(plain, rel=1e-3)


def test_requests_without_chunks_are_refused() -> None:
    with pytest.raises(ScenarioError, match="name no chunks"):
        run(replace(rag([[5]]), chunks=None))


@settings(max_examples=25, deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(1, 90), max_size=4), min_size=1, max_size=8),
    budget=st.sampled_from([32, 128, 4096]),
    gap=st.sampled_from([0.0, 0.02]),
)
def test_spans_are_steps(documents: list[list[int]], budget: int, gap: float) -> None:
    trace = rag(documents, gap_s=gap)
    same(*(run(trace, budget=budget, step_mode=mode) for mode in (False, True)))
