"""Transforms keep the order of arrivals and the meaning of ids; descriptions say what is there."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.core.errors import TraceError
from traces import transforms
from traces.describe import describe, plot, prefix_hit_ratio
from traces.generate import Generators, Lengths, Sessions, synthesize
from traces.generate.arrivals import AtOnce, Constant, Poisson
from traces.generate.distributions import Fixed, Geometric, Uniform
from traces.prefix import from_rows, is_chained
from traces.trace import Labels, Trace


def chats(n=300, seed=0):
    return synthesize(
        arrivals=Poisson(2), lengths=Lengths(Uniform(30, 90), Uniform(5, 50)), num_requests=n,
        sessions=Sessions(turns=Geometric(3), think_time_s=Fixed(5), shared_prefix_tokens=32), generators=Generators.of(seed),
    )  # fmt: skip


def plain(*arrivals, **columns):
    n = len(arrivals)
    return Trace(np.array(arrivals, float), np.arange(1, n + 1) * 20, np.arange(1, n + 1), **columns)


def test_rates_are_scaled_by_squeezing_time_and_think_times_stay():
    trace = chats()
    twice = transforms.scale_rate(trace, 2)
    assert twice.rate == pytest.approx(2 * trace.rate)
    np.testing.assert_array_equal(twice.think_time, trace.think_time)
    assert transforms.to_rate(trace, 7.5).rate == pytest.approx(7.5)
    with pytest.raises(TraceError, match="all requests arrive at once"):
        transforms.to_rate(plain(0, 0, 0), 1)


def test_lengths_without_times_get_arrivals():
    timed = transforms.with_arrivals(plain(0, 0, 0), Constant(2), np.random.default_rng(0))
    assert timed.arrival.tolist() == [0.5, 1.0, 1.5]
    assert timed.prompt_tokens.tolist() == [20, 40, 60]


def test_a_window_starts_at_zero_and_orphaned_turns_lose_their_think_time():
    trace = chats()
    part = transforms.window(trace, 40, 80)
    assert part.arrival[0] >= 0
    assert part.arrival[-1] < 40
    inside = (trace.arrival >= 40) & (trace.arrival < 80)
    np.testing.assert_allclose(part.arrival, trace.arrival[inside] - 40)
    _, first = np.unique(part.session, return_index=True)
    assert np.isnan(part.think_time[first]).all()
    assert (part.turn[first] > 0).any()
    with pytest.raises(TraceError, match="no request arrives"):
        transforms.window(trace, 1e6, 2e6)


def test_a_sample_takes_whole_conversations():
    trace = chats(3000)
    part = transforms.sample(trace, 0.3, np.random.default_rng(1))
    assert len(part) / len(trace) == pytest.approx(0.3, abs=0.05)
    kept = set(part.session.tolist())
    assert len(part) == np.isin(trace.session, list(kept)).sum()


def test_clipping_cuts_prompts_outputs_and_blocks_and_says_so():
    trace = plain(0, 1, 2, prefix=from_rows([[1], [1, 2], [1, 2, 3]], 16))
    cut = transforms.clip_lengths(trace, max_prompt_tokens=33, max_output_tokens=2)
    assert cut.prompt_tokens.tolist() == [20, 33, 33]
    assert cut.output_tokens.tolist() == [1, 2, 2]
    assert cut.prefix is not None
    assert cut.prefix.row(2).tolist() == [1, 2]
    assert "2 requests cut" in cut.notes[0]


def test_merging_keeps_order_conversations_and_ids_apart():
    a = plain(
        0, 2, 4, session=np.array([5, 5, 6]), tenant=Labels.of(["x", "y", "x"]), prefix=from_rows([[1], [1, 9], []], 16)
    )
    b = plain(1, 2, 3, prefix=from_rows([[1], [2], [1]], 16), priority=np.array([1, 2, 3]))
    both = transforms.merge([a, b])
    assert both.arrival.tolist() == [0, 1, 2, 2, 3, 4]
    assert both.prompt_tokens.tolist() == [20, 20, 40, 40, 60, 60]
    assert both.session.tolist() == [0, -1, 0, -1, -1, 1]
    assert both.tenant.values().tolist() == ["x", None, "y", None, None, "x"]
    assert both.priority.tolist() == [0, 1, 0, 2, 3, 0]
    from_a = {i for row in (0, 2, 5) for i in both.prefix.row(row).tolist()}
    from_b = {i for row in (1, 3, 4) for i in both.prefix.row(row).tolist()}
    assert not from_a & from_b
    shared = transforms.merge([a, b], share_prefixes=True)
    assert shared.prefix.row(0).tolist() == shared.prefix.row(1).tolist() == [1]
    with pytest.raises(TraceError, match="different numbers of tokens"):
        transforms.merge([a, replace(b, prefix=from_rows([[1], [], []], 8))])


def test_repeating_makes_new_prompts_unless_told_otherwise():
    trace = chats(200)
    other = transforms.repeat(trace, 3)
    same = transforms.repeat(trace, 3, share_prefixes=True)
    assert len(other) == 600
    assert other.rate == pytest.approx(trace.rate, rel=0.02)
    assert len(np.unique(other.session)) == 3 * len(np.unique(trace.session))
    assert prefix_hit_ratio(other) == pytest.approx(prefix_hit_ratio(trace), abs=0.001)
    assert prefix_hit_ratio(same) > 0.8
    np.testing.assert_array_equal(same.prefix.row(0), same.prefix.row(200))
    twice = transforms.repeat(plain(0, 4), 2, gap_s=10)
    assert twice.arrival.tolist() == [0, 4, 14, 18]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["scale", "window", "sample", "merge", "repeat", "clip", "head"]), min_size=1, max_size=4),
    st.integers(0, 5),
)
def test_any_chain_of_transforms_gives_a_valid_trace_and_leaves_its_input_alone(steps, seed):
    rng = np.random.default_rng(seed)
    trace = chats(60, seed)
    before = trace.arrival.tobytes(), trace.prefix.ids.tobytes(), trace.think_time.tobytes()
    start = trace
    for step in steps:
        if len(trace) == 0:
            break
        trace = {
            "scale": lambda t: transforms.scale_rate(t, 1.7),
            "window": lambda t: transforms.window(t, 0, t.arrival[len(t) // 2] + 1e-9),
            "sample": lambda t: transforms.sample(t, 0.5, rng),
            "merge": lambda t: transforms.merge([t, plain(0, 1, 2)]),
            "repeat": lambda t: transforms.repeat(t, 2),
            "clip": lambda t: transforms.clip_lengths(t, max_prompt_tokens=50),
            "head": lambda t: transforms.head(t, 20),
        }[step](trace)
        # The constructor has checked order, lengths and blocks; ids must still be chained.
        assert is_chained(trace.prefix)
    assert before == (start.arrival.tobytes(), start.prefix.ids.tobytes(), start.think_time.tobytes())


@pytest.mark.parametrize(
    "call",
    [
        lambda t: transforms.scale_rate(t, 0), lambda t: transforms.to_rate(t, -1), lambda t: transforms.window(t, 5, 5),
        lambda t: transforms.sample(t, 1.5, np.random.default_rng(0)), lambda t: transforms.repeat(t, 0),
        lambda t: transforms.clip_lengths(t, max_prompt_tokens=0), lambda _: transforms.merge([]), lambda t: t.head(-1),
        lambda t: transforms.repeat(t, 2, gap_s=-1),
    ],
)  # fmt: skip
def test_impossible_transforms_are_refused(call):
    with pytest.raises(TraceError):
        call(plain(0, 1, 2))


def test_a_description_has_the_figures_one_can_check_by_hand():
    trace = Trace(
        arrival=np.array([0.0, 1, 2, 61, 120]), prompt_tokens=np.array([32, 48, 100, 20, 200]),
        output_tokens=np.array([1, 2, 3, 4, 90]), session=np.array([0, 0, 1, -1, 0]), turn=np.array([0, 1, 0, 0, 2]),
        think_time=np.array([np.nan, 1, np.nan, np.nan, 4]),
        prefix=from_rows([[1, 2], [1, 2, 3], [1], [], [1, 2, 3, 4]], 16), notes=("1 of 6 rows skipped",),
    )  # fmt: skip
    d = describe(trace)
    assert (d.requests, d.duration_s, d.rate) == (5, 120, 4 / 120)
    assert d.peak_minute_rate == 3 / 60
    assert d.interarrival_cv == pytest.approx(np.std([1, 1, 59, 59]) / 30)
    assert (d.sessions, d.turns_mean, d.turns_max, d.think_time_p50_s) == (2, 2.0, 3, 2.5)
    assert d.prefix_hit_ratio == 16 * (2 + 1 + 3) / 400
    assert (d.prompt_tokens.p50, d.prompt_tokens.max, d.output_tokens.total) == (48, 200, 100)
    shown = dict(d.rows())
    assert shown["ideal prefix hits"] == "24.0% (16-token blocks)"
    assert shown["note"] == "1 of 6 rows skipped"
    assert json.loads(json.dumps(d.to_dict()))["output_tokens"]["p50"] == 3


def test_what_does_not_exist_is_nan_or_none_and_json_still_works():
    d = describe(
        synthesize(arrivals=AtOnce(), lengths=Lengths(Fixed(1), Fixed(1)), num_requests=2, generators=Generators.of(0))
    )
    assert np.isnan(d.rate)
    assert d.prefix_hit_ratio is None
    assert json.loads(json.dumps(d.to_dict(), allow_nan=False))["rate"] is None
    assert dict(d.rows())["rate"] == "- requests/s"
    with pytest.raises(TraceError, match="empty"):
        describe(plain(0).head(0))


@pytest.mark.parametrize(
    "trace", [chats(), plain(0, 0, 0), plain(3), plain(0, 1)], ids=["chats", "at once", "one", "two"]
)
def test_the_picture_is_drawn_for_any_trace(tmp_path, trace):
    path = tmp_path / "trace.png"
    plot(trace, path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert path.stat().st_size > 10_000


def test_a_picture_that_cannot_be_written_is_a_trace_error(tmp_path):
    with pytest.raises(TraceError, match="cannot write the picture"):
        plot(plain(0, 1), tmp_path / "absent" / "x.png")
    with pytest.raises(TraceError, match="cannot write the picture"):
        plot(plain(0, 1), tmp_path / "x.notaformat")


def test_copies_come_at_once_and_are_equal():
    trace = transforms.copies(plain(0, 1, 5, tenant=Labels(np.array([0, 1, 0]), ("a", "b"))), 3)
    np.testing.assert_array_equal(trace.arrival, [0, 0, 0, 1, 1, 1, 5, 5, 5])
    np.testing.assert_array_equal(trace.prompt_tokens, [20] * 3 + [40] * 3 + [60] * 3)
    assert list(trace.tenant.values()) == list("aaabbbaaa")
    with pytest.raises(TraceError, match="turn"):
        transforms.copies(chats(), 2)
