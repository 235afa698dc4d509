"""Turns that wait for tools: what their KV costs meanwhile, and that spans stay steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster.plan import single
from simulator.cluster.simulation import Simulation
from simulator.core.errors import PolicyError
from simulator.cost.analytic import LinearCost
from simulator.replica.records import SimulationRecords
from simulator.scheduling import POLICIES, EngineArgs, resolve
from tests.cluster.test_many_replicas import same
from tests.scheduling.invariants import check
from traces.trace import Trace

COST = LinearCost(0.01, 1e-4, 1e-5, 1e-7, 1e-9)
ALL = ["discard", "preserve", "swap", "min-waste"]
KV = 1 << 20  # bytes per token


def calls(sessions: list[list[tuple[int, int, float]]], gap_s: float = 0.0) -> Trace:
    """Conversations of (new prompt tokens, output tokens, pause before it in s)."""
    rows = []
    for index, turns in enumerate(sessions):
        said = 0
        for turn, (new, output, pause) in enumerate(turns):
            rows.append((gap_s * index, index, turn, said + new, output, pause if turn else np.nan))
            said += new + output
    rows.sort(key=lambda row: row[0])
    columns: list[Any] = [np.array(column) for column in zip(*rows, strict=True)]
    arrival, session, turn, prompt, output, think = columns
    return Trace(arrival, prompt, output, session=session, turn=turn, think_time=think)


def run(trace: Trace, kind: str, *, blocks: int = 200, step_mode: bool = False, **options: Any) -> SimulationRecords:
    args = resolve(
        EngineArgs(
            policy="infercept",
            max_num_seqs=options.pop("max_num_seqs", 16),
            max_num_batched_tokens=256,
            async_scheduling=options.pop("async_scheduling", False),
            options={"interception": kind, "kv_bytes_per_token": KV, **options},
        )
    )
    built = Simulation(trace, single(args, COST, blocks), step_mode=step_mode)
    records = built.run()
    state = built.replicas[0].engine.state
    check(records, trace, state)
    assert not state.kept
    assert state.pool.free == state.pool.num_blocks
    return records


TWO = calls([[(100, 20, 0.0), (10, 20, 1.0), (10, 20, 1.0)]])
FIRST, SECOND = 100 + 20 - 1, 100 + 20 + 10 + 20 - 1  # tokens computed when a turn ends


def test_what_is_kept_is_not_computed_again() -> None:
    assert run(TWO, "discard").requests.cached_tokens.tolist() == [0, 0, 0]
    for kind in ("preserve", "swap", "min-waste"):
        assert run(TWO, kind).requests.cached_tokens.tolist() == [0, FIRST, SECOND], kind


def test_a_swap_makes_the_engine_wait_and_one_behind_the_computation_only_its_turn() -> None:
    copy_s = FIRST * KV / 25e9
    kept, swapped, hidden = (run(TWO, kind).requests for kind in ("preserve", "swap", "min-waste"))
    back = (r.first_token[1] - r.arrival[1] for r in (kept, swapped, hidden))
    plain, *copied = back
    assert copied == pytest.approx([plain + copy_s] * 2, rel=1e-3)
    # Somebody who decodes meanwhile is held up by a synchronous copy alone.
    other = calls([[(100, 20, 0.0), (10, 20, 1.0), (10, 20, 1.0)], [(10, 250, 0.0)]])
    ends = [
        run(other, kind).requests.finish[other.output_tokens == 250][0] for kind in ("preserve", "min-waste", "swap")
    ]
    assert ends[1] == pytest.approx(ends[0], abs=copy_s / 10)
    assert ends[2] > ends[0] + copy_s


def test_min_waste_keeps_for_short_calls_and_moves_for_long_ones() -> None:
    copy_s = 2 * FIRST * KV / 25e9
    short, long = (calls([[(100, 20, 0.0), (10, 20, pause)]]) for pause in (0.5 * copy_s, 2 * copy_s))
    assert run(short, "min-waste").requests.cached_tokens[1] == FIRST
    assert run(long, "min-waste").requests.cached_tokens[1] == FIRST
    nowhere: dict[str, Any] = {"swap_space_gib": 0.0, "prefill_tokens_per_s": 1000.0}
    recompute_s = FIRST / 1000
    for pause, kept in ((0.4 * recompute_s, FIRST), (0.6 * recompute_s, 0)):  # alone: preserving wastes pause x context
        trace = calls([[(100, 20, 0.0), (10, 20, pause)]])
        assert run(trace, "min-waste", **nowhere).requests.cached_tokens[1] == kept


def test_preserved_kv_gives_way_before_anybody_who_runs() -> None:
    trace = calls([[(200, 10, 0.0), (10, 10, 5.0)], [(200, 200, 0.0)]], gap_s=0.2)
    records = run(trace, "preserve", blocks=36)
    assert records.requests.preemptions.sum() == 0
    assert records.requests.cached_tokens.tolist() == [0, 0, 0]


def test_who_comes_back_goes_before_younger_conversations() -> None:
    trace = calls([[(50, 5, 0.0), (10, 5, 0.2)], *[[(50, 40, 0.0)]] * 6], gap_s=0.001)
    second = np.flatnonzero(trace.turn == 1)[0]
    waits = [
        run(trace, "discard", max_num_seqs=1, order=order).requests.first_token[second]
        for order in ("original", "arrival")
    ]
    assert waits[0] < waits[1]


def test_options_that_cannot_be() -> None:
    with pytest.raises(PolicyError, match="kv_bytes_per_token"):
        POLICIES.get("infercept")(EngineArgs(policy="infercept"))
    plain = {"interception": "discard"}
    with pytest.raises(PolicyError, match="without a prefix cache"):
        POLICIES.get("infercept")(EngineArgs(policy="infercept", enable_prefix_caching=True, options=plain))


@st.composite
def conversations(draw: st.DrawFn) -> Trace:
    turn = st.tuples(st.integers(1, 40), st.integers(1, 25), st.sampled_from([0.0, 0.003, 0.05, 0.4, 3.0]))
    sessions = draw(st.lists(st.lists(turn, min_size=1, max_size=4), min_size=1, max_size=8))
    return calls(sessions, draw(st.sampled_from([0.0, 0.01, 0.3])))


@settings(max_examples=60, deadline=None)
@given(
    trace=conversations(),
    kind=st.sampled_from(ALL),
    order=st.sampled_from(["original", "arrival"]),
    blocks=st.sampled_from([19, 30, 100]),
    seqs=st.integers(1, 6),
    asynchronous=st.booleans(),
    space=st.sampled_from([0.05, 64.0]),
)
def test_spans_are_steps(
    trace: Trace, kind: str, order: str, blocks: int, seqs: int, asynchronous: bool, space: float
) -> None:
    def one(step_mode: bool) -> SimulationRecords:
        more: dict[str, Any] = {
            "order": order,
            "max_num_seqs": seqs,
            "async_scheduling": asynchronous,
            "swap_space_gib": space,
        }
        return run(trace, kind, blocks=blocks, step_mode=step_mode, **more)

    same(one(step_mode=False), one(step_mode=True))
