"""Programs: requests that wait for each other's answers."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from simulator.core.errors import TraceError
from traces.formats import read_trace
from traces.programs import branches, chain, map_reduce
from traces.trace import After, Trace
from traces.transforms import merge


def documents(*prompt_tokens: int) -> Trace:
    n = len(prompt_tokens)
    return Trace(np.arange(n) * 1.0, np.array(prompt_tokens), np.full(n, 7))


def waits_for(trace: Trace) -> list[list[int]]:
    assert trace.after is not None
    ends = trace.after.offsets
    return [trace.after.turns[a:b].tolist() for a, b in pairwise(ends)]


def test_a_chain_hands_its_summary_on() -> None:
    calls = chain(documents(2500, 800), chunk_tokens=1000, output_tokens=50, gap_s=0.25)
    assert calls.prompt_tokens.tolist() == [1000, 1050, 550, 800]
    assert calls.output_tokens.tolist() == [50] * 4
    assert waits_for(calls) == [[], [0], [1], []]
    assert calls.session is not None
    assert calls.session.tolist() == [0, 0, 0, 1]
    assert calls.think_time is not None
    np.testing.assert_array_equal(calls.think_time, [np.nan, 0.25, 0.25, np.nan])


def test_summaries_of_all_pieces_come_together() -> None:
    calls = map_reduce(documents(2500), chunk_tokens=1000, output_tokens=50)
    assert calls.prompt_tokens.tolist() == [1000, 1000, 500, 150]
    assert waits_for(calls) == [[], [], [], [0, 1, 2]]


def test_lines_of_thought_share_their_prompt_and_their_past() -> None:
    calls = branches(
        documents(100), np.random.default_rng(1), count=2, rounds=2, round_tokens=32, gang=True, block_tokens=16
    )
    assert calls.prompt_tokens.tolist() == [100, 100, 132, 132]
    assert waits_for(calls) == [[], [], [0, 1], [0, 1]]
    assert calls.prefix is not None
    first, second, again, other = (calls.prefix.row(i).tolist() for i in range(4))
    assert first == second  # six full blocks of the prompt; the seventh is a line's own
    assert again[:6] == other[:6] == first
    assert len(again) == 8
    assert set(again[6:]).isdisjoint(other[6:])
    assert calls.priority is not None
    assert (calls.priority == 0).all()


def test_sure_programs_stop_early() -> None:
    rng = np.random.default_rng(1)
    calls = branches(
        documents(*[64] * 2000), rng, count=4, rounds=6, round_tokens=200, stop_share=0.6, stop_rounds=3
    )
    full = 2000 * 4 * 6
    assert len(calls) / full == pytest.approx(1 - 0.6 * 0.5, abs=0.02)


def test_files_keep_who_waits_for_whom(tmp_path: Path) -> None:
    calls = map_reduce(documents(2500, 500), chunk_tokens=1000, output_tokens=50, gap_s=0.5)
    for name in ("calls.parquet", "calls.csv"):
        path = tmp_path / name
        calls.to_parquet(path) if name.endswith("parquet") else calls.to_csv(path)
        assert waits_for(read_trace(path)) == waits_for(calls)


def test_merged_programs_stay_apart() -> None:
    both = merge([chain(documents(2000), chunk_tokens=1000, output_tokens=5), documents(10)])
    assert waits_for(both) == [[], [0], []] or waits_for(both) == [[], [], [0]]


def test_a_part_forgets_what_is_not_in_it() -> None:
    calls = map_reduce(documents(2500), chunk_tokens=1000, output_tokens=50)
    last = calls.select(np.array([3]))
    assert waits_for(last) == [[0, 1, 2]]  # turns that the trace does not hold are not waited for


def test_nobody_waits_for_later_turns() -> None:
    columns = {"session": np.zeros(2), "turn": np.arange(2)}
    with pytest.raises(TraceError, match="row 0: after"):
        Trace(np.zeros(2), np.ones(2), np.ones(2), after=After.of([[1], []]), **columns)  # type: ignore[arg-type]
    with pytest.raises(TraceError, match="session and turn"):
        Trace(np.zeros(1), np.ones(1), np.ones(1), after=After.of([[]]))


def test_what_is_no_program() -> None:
    with pytest.raises(TraceError, match="chunk_tokens"):
        chain(documents(10), chunk_tokens=0, output_tokens=1)
    with pytest.raises(TraceError, match="already belong"):
        chain(chain(documents(10), chunk_tokens=5, output_tokens=1), chunk_tokens=5, output_tokens=1)
    with pytest.raises(TraceError, match=r"1\.5"):
        branches(documents(5), np.random.default_rng(1), count=1, rounds=1, round_tokens=1, stop_share=1.5)
