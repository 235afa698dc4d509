"""The Trace table refuses what could not be served, and comes back from disk as it was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.core.errors import TraceError
from traces.formats import read_trace
from traces.prefix import chain_ids, cut_to_full_blocks, from_rows, infinite_cache_hits, is_chained
from traces.trace import Chunks, Labels, PrefixBlocks, Trace


def small(**columns):
    base = {"arrival": [0.0, 1.5, 1.5], "prompt_tokens": [40, 33, 100], "output_tokens": [1, 2, 3]}
    return Trace(**{name: np.array(v) if isinstance(v, list) else v for name, v in (base | columns).items()})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"arrival": [0.0, 2.0, 1.0]}, "row 2: arrival = 1.0 is earlier"),
        ({"arrival": [-1.0, 2.0, 3.0]}, "row 0: arrival = -1.0 must be"),
        ({"arrival": [0.0, 2.0, np.inf]}, "row 2: arrival = inf"),
        ({"arrival": [0.0, 2.0]}, "prompt_tokens has 3 rows, arrival has 2"),
        ({"output_tokens": [1, 0, 3]}, "row 1: output_tokens = 0"),
        ({"prompt_tokens": [1.0, 2.5, 3.0]}, "row 1: prompt_tokens = 2.5 must be a whole number"),
        ({"prompt_tokens": ["a", "b", "c"]}, "must hold numbers"),
        ({"think_time": [np.nan, 1.0, 1.0]}, "needs the session column"),
        ({"session": [0, 0, 0], "think_time": [np.nan, -1.0, 1.0]}, "row 1: think_time = -1.0"),
        ({"prefix": from_rows([[1, 2], [1, 2, 3], []], 16)}, "row 1: prefix = 3 blocks lists more full blocks"),
        ({"prefix": from_rows([[1, 2]], 16)}, "prefix has 1 rows"),
    ],
)
def test_a_table_that_could_not_be_served_is_refused_with_row_and_value(columns, message):
    with pytest.raises(TraceError, match=message.replace("(", r"\(")):
        small(**columns)


def test_label_codes_outside_the_names_and_broken_offsets_are_refused():
    with pytest.raises(TraceError, match="label codes"):
        Labels(np.array([0, 2]), ("a", "b"))
    with pytest.raises(TraceError, match="offsets"):
        PrefixBlocks(np.array([0, 3]), np.array([1, 2]), 16)


def test_head_and_select_take_every_column_along():
    trace = small(
        session=[7, 8, 7], tenant=Labels.of(["x", None, "y"]), prefix=from_rows([[1, 2], [1, 3], [1, 2, 9]], 16)
    )
    last = trace.select(np.array([False, False, True]))
    assert last.session is not None
    assert last.session.tolist() == [7]
    assert last.tenant is not None
    assert last.tenant.values().tolist() == ["y"]
    assert last.prefix is not None
    assert last.prefix.row(0).tolist() == [1, 2, 9]
    assert len(trace.head(2)) == 2
    assert len(trace.head(99)) == 3
    with pytest.raises(TraceError, match="mask of 2 rows"):
        trace.select(np.array([True, False]))


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.csv.gz"])
def test_what_is_written_is_read_back_column_by_column(tmp_path, name):
    trace = small(
        arrival=[0.0, 1 / 3, 1e5 + 1e-7],
        session=[0, 0, -1],
        turn=[0, 1, 0],
        think_time=[np.nan, 0.1, np.nan],
        prefix=from_rows([[5, 6], [5, 7], []], 16),
        tenant=Labels.of(["zürich, ch", None, 'a"b']),
        priority=[0, -1, 3],
        model=Labels.of(["m", "m", "m"]),
        chunks=Chunks(np.array([0, 2, 2, 3]), np.array([7, 8, 7]), np.array([3, 4, 3])),
        notes=("1 of 4 rows skipped",),
    )
    path = tmp_path / name
    trace.to_parquet(path) if name.endswith("parquet") else trace.to_csv(path)
    again = read_trace(path)
    assert again.columns() == trace.columns()
    assert again.prefix is not None
    assert trace.prefix is not None
    assert again.prefix.block_tokens == 16
    assert [again.prefix.row(i).tolist() for i in range(3)] == [[5, 6], [5, 7], []]
    assert again.chunks is not None
    assert again.chunks.offsets.tolist() == [0, 2, 2, 3]
    assert (again.chunks.ids.tolist(), again.chunks.tokens.tolist()) == ([7, 8, 7], [3, 4, 3])
    for column in ("arrival", "prompt_tokens", "output_tokens", "session", "turn", "think_time", "priority"):
        np.testing.assert_array_equal(getattr(again, column), getattr(trace, column))
    for column in ("tenant", "model"):
        assert getattr(again, column).values().tolist() == getattr(trace, column).values().tolist()
    if name.endswith("parquet"):
        assert again.notes == trace.notes


def test_to_frame_has_one_column_each():
    frame = small(priority=[1, 2, 3]).to_frame()
    assert list(frame.columns) == ["arrival", "prompt_tokens", "output_tokens", "priority"]
    assert frame["arrival"].tolist() == [0.0, 1.5, 1.5]


def test_an_infinite_cache_hits_the_leading_blocks_that_came_before():
    prefix = from_rows([[1, 2, 3], [1, 2, 4], [9], [1, 2, 4, 5], []], 16)
    assert infinite_cache_hits(prefix).tolist() == [0, 2, 0, 3, 0]


def test_content_hashes_become_chained_ids():
    # Block 7 stands after 1 and after 2: the same text, but not the same prefix.
    raw = from_rows([[1, 7], [2, 7], [1, 7, 7], [7]], 16)
    assert not is_chained(raw)
    chained = chain_ids(raw)
    assert is_chained(chained)
    a, b, c, d = (chained.row(i).tolist() for i in range(4))
    assert a == c[:2]
    assert a[1] != b[1] != c[2]
    assert d[0] not in a + b
    assert infinite_cache_hits(chained).tolist() == [0, 0, 2, 0]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), max_size=6), max_size=12))
def test_two_rows_share_a_chained_id_exactly_when_they_share_the_prefix(rows):
    chained = chain_ids(from_rows(rows, 4))
    assert is_chained(chained)
    ids = [chained.row(i).tolist() for i in range(len(rows))]
    for i, mine in enumerate(rows):
        for k, other in enumerate(rows):
            for j in range(min(len(mine), len(other))):
                assert (ids[i][j] == ids[k][j]) == (mine[: j + 1] == other[: j + 1])


def test_only_full_blocks_stay():
    prefix = cut_to_full_blocks(from_rows([[1, 2, 3], [4], [5, 6]], 512), np.array([1025, 511, 1024]))
    assert [prefix.row(i).tolist() for i in range(3)] == [[1, 2], [], [5, 6]]


def test_rate_and_duration():
    trace = replace(small(), arrival=np.array([10.0, 11.0, 14.0]))
    assert trace.duration == 4.0
    assert trace.rate == 0.5
    assert np.isnan(small(arrival=[0.0, 0.0, 0.0]).rate)
