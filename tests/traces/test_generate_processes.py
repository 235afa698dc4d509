"""Arrival processes and distributions against what theory says of them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from simulator.core.errors import TraceError
from traces.generate.arrivals import (
    AtOnce,
    Constant,
    Gamma,
    Gaps,
    OnOff,
    Poisson,
    RateCurve,
    Weibull,
    diurnal,
)
from traces.generate.distributions import (
    Choice,
    Exponential,
    Fixed,
    Geometric,
    LogNormal,
    Normal,
    Quantiles,
    Uniform,
    whole,
)
from traces.generate.lengths import Lengths
from traces.generate.presets import parse_arrivals, parse_distribution, parse_lengths, parse_sessions
from traces.generate.sessions import Sessions
from traces.generate.synthesize import Client, Generators, synthesize, synthesize_clients

N = 100_000


def rng(seed=0):
    return np.random.default_rng(seed)


def cv(times):
    gaps = np.diff(times)
    return gaps.std() / gaps.mean()


@pytest.mark.parametrize(
    ("process", "expected_cv"),
    [
        (Poisson(20), 1.0),
        (Gamma(20, burstiness=0.25), 2.0),
        (Gamma(20, burstiness=4), 0.5),
        (Gamma(20, burstiness=float("inf")), 0.0),
        (Weibull(20, shape=0.5), 5**0.5),
        (Constant(20), 0.0),
        (Gaps(20, q=(0, 1), values=(0, 7)), 3**-0.5),  # uniform gaps
    ],
)
def test_rate_and_burstiness_are_what_was_asked_for(process, expected_cv):
    times = process.times(N, rng())
    assert len(times) == N
    assert (np.diff(times) >= 0).all()
    assert N / times[-1] == pytest.approx(20, rel=0.02)
    assert cv(times) == pytest.approx(expected_cv, abs=0.04)
    again = process.at_rate(5, N).times(N, rng())
    assert N / again[-1] == pytest.approx(5, rel=0.02)
    assert cv(again) == pytest.approx(expected_cv, abs=0.04)


def test_poisson_counts_have_the_variance_of_their_mean():
    counts = np.bincount(Poisson(10).times(N, rng()).astype(int))[:-1]
    assert counts.var() / counts.mean() == pytest.approx(1, rel=0.05)


def test_on_off_has_its_rates_in_its_states_and_the_right_dispersion():
    process = OnOff(rate_on=20, rate_off=0, mean_on_s=2, mean_off_s=8)
    assert process.rate == 4
    times = process.times(N, rng())
    assert N / times[-1] == pytest.approx(4, rel=0.05)
    # Index of dispersion of a two-state MMPP for long windows (Fischer & Meier-Hellstern 1993,
    # doi:10.1016/0166-5316(93)90035-S): 1 + 2 (l1-l2)^2 s1 s2 / ((s1+s2)^2 (l1 s2 + l2 s1)), s = 1 / mean stay.
    s1, s2 = 1 / 2, 1 / 8
    dispersion = 1 + 2 * 20**2 * s1 * s2 / ((s1 + s2) ** 2 * 20 * s2)
    counts = np.bincount((times // 200).astype(int))[:-1]
    assert counts.var() / counts.mean() == pytest.approx(dispersion, rel=0.3)
    assert process.at_rate(8, N).rate == pytest.approx(8)


def test_a_rate_curve_puts_the_arrivals_where_the_rate_is():
    curve = RateCurve((0, 100, 100, 200), (0, 10, 2, 2))  # a ramp, then a jump down
    period = 500 + 200
    assert curve.expected(200) == pytest.approx(period)
    assert curve.expected(50) == pytest.approx(125)
    assert curve.expected(650) == pytest.approx(3 * period + 125)
    mass = np.linspace(0, 3 * period, 1001)
    back = [curve.expected(float(t)) for t in curve.inverse(mass)]
    np.testing.assert_allclose(back, mass, atol=1e-6)
    times = curve.times(70 * 700, rng())
    assert (np.diff(times) >= 0).all()
    phase = np.histogram(times % 200, [0, 50, 100, 200])[0] / 70
    assert phase == pytest.approx([125, 375, 200], rel=0.03)


def test_a_curve_that_does_not_repeat_holds_its_last_rate():
    ramp = RateCurve((0, 10), (0, 4), repeat=False)
    times = ramp.inverse(np.array([0.0, 20.0, 24.0, 60.0]))
    assert times.tolist() == pytest.approx([0, 10, 11, 20])
    assert ramp.expected(20) == pytest.approx(60)


def test_a_curve_with_silence_in_it_has_no_arrivals_there():
    curve = RateCurve((0, 10, 10, 20, 20, 30), (5, 5, 0, 0, 5, 5))
    phase = curve.times(20_000, rng()) % 30
    assert not ((phase > 10 + 1e-9) & (phase < 20 - 1e-9)).any()


def test_a_curve_keeps_constant_spacing_when_its_rate_is_constant():
    curve = RateCurve((0, 60), (2, 2), within=Constant(1))
    np.testing.assert_allclose(curve.times(500, rng()), np.arange(1, 501) / 2, atol=1e-9)


def test_at_rate_of_a_curve_is_the_mean_over_the_window_it_takes():
    day = diurnal(1, amplitude=0.8, peak_s=43_200)
    night = day.at_rate(10, 36_000)  # the first hour of the day, far below its mean
    assert 36_000 / night.times(36_000, rng())[-1] == pytest.approx(10, rel=0.02)
    peak = max(np.histogram(day.at_rate(1, 86_400).times(86_400, rng()), 24)[0]) / 3600
    assert peak == pytest.approx(1.8, rel=0.05)


def test_at_once():
    assert AtOnce().times(3, rng()).tolist() == [0, 0, 0]
    with pytest.raises(TraceError, match="no rate"):
        AtOnce().at_rate(1, 3)


@pytest.mark.parametrize(
    ("distribution", "mean", "p90"),
    [
        (Fixed(7), 7, 7),
        (Uniform(10, 20), 15, 19),
        (Normal(100, 10), 100, 112.8),
        (LogNormal(100, 0.5), 100 * np.exp(0.125), 100 * np.exp(0.5 * 1.2816)),
        (Exponential(30), 30, 30 * np.log(10)),
        (Geometric(5), 5, np.ceil(np.log(0.1) / np.log(0.8))),
        (Quantiles((0, 0.5, 1), (0, 100, 300)), 125, 260),
        (Choice((1, 5), (3, 1)), 2, 5),
    ],
)
def test_distributions_have_their_mean_and_quantiles(distribution, mean, p90):
    draw = distribution.ppf(rng().random(N))
    assert draw.mean() == pytest.approx(mean, rel=0.02)
    assert np.percentile(draw, 90) == pytest.approx(p90, rel=0.02)


def test_whole_numbers_of_a_uniform_include_both_ends_alike():
    counts = np.bincount(whole(Uniform(2, 5), rng().random(N)))
    assert counts[2:].tolist() == pytest.approx([N / 4] * 4, rel=0.03)
    assert whole(Fixed(0), np.zeros(2)).tolist() == [1, 1]


def test_correlated_lengths_keep_their_distributions():
    from scipy.stats import spearmanr

    prompt, output = Lengths(LogNormal(100, 1), Uniform(1, 1000), correlation=-0.4).sample(N, rng())
    assert spearmanr(prompt, output).statistic == pytest.approx(-0.4, abs=0.02)
    assert np.median(prompt) == pytest.approx(100, rel=0.03)
    assert output.mean() == pytest.approx(500, rel=0.02)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Poisson(0), lambda: Poisson(float("nan")), lambda: Gamma(1, 0), lambda: Weibull(1, -1),
        lambda: Constant(float("inf")), lambda: OnOff(1, 0, 1), lambda: RateCurve((0, 1), (0, 0)),
        lambda: RateCurve((1, 2), (1, 1)), lambda: RateCurve((0, 2), (1, 0), repeat=False), lambda: Uniform(5, 2),
        lambda: Normal(1, -1), lambda: LogNormal(0, 1), lambda: Quantiles((0, 0.5), (1, 2)), lambda: Quantiles((0, 1), (2, 1)),
        lambda: Choice((1, 2), (0, 0)), lambda: Geometric(0.5), lambda: Lengths(Fixed(1), Fixed(1), 2),
        lambda: Sessions(groups=0), lambda: Sessions(edit_probability=1.5), lambda: Sessions(block_tokens=0),
        lambda: Client("x", 0, Poisson(1), Lengths(Fixed(1), Fixed(1))), lambda: diurnal(1, amplitude=2),
        lambda: Exponential(0),
    ],
)  # fmt: skip
def test_impossible_parameters_are_refused(make):
    with pytest.raises(TraceError):
        make()


def test_yaml_words_map_one_to_one():
    assert parse_arrivals({"process": "gamma", "rate": 5, "burstiness": 0.5}) == Gamma(5, 0.5)
    curve = parse_arrivals(
        {
            "process": "rate_curve",
            "times_s": [0, 9],
            "rates": [1, 2],
            "within": {"process": "weibull", "rate": 1, "shape": 2},
        }
    )
    assert curve == RateCurve((0, 9), (1, 2), Weibull(1, 2))
    assert parse_lengths({"prompt": 9, "output": {"distribution": "uniform", "low": 1, "high": 2}}) == Lengths(
        Fixed(9), Uniform(1, 2)
    )
    assert parse_sessions({"turns": {"distribution": "geometric", "mean": 3}}).turns == Geometric(3)
    for spec, near in (
        ({"process": "gama", "rate": 1}, "gamma"),
        ({"process": "gamma", "rate": 1, "burst": 1}, "burstiness"),
    ):
        with pytest.raises(TraceError, match=f"'{near}'"):
            parse_arrivals(spec)
    with pytest.raises(TraceError, match="fixed"):
        parse_distribution({"distribution": "fixd"})
    with pytest.raises(TraceError, match="rate"):
        parse_arrivals({"process": "poisson"})


LENGTHS = Lengths(Uniform(50, 150), Uniform(10, 30))


def test_other_lengths_leave_the_arrivals_alone_and_a_seed_gives_the_same_bytes():
    one = synthesize(arrivals=Poisson(5), lengths=LENGTHS, num_requests=500, generators=Generators.of(3))
    other = synthesize(
        arrivals=Poisson(5), lengths=Lengths(Fixed(1), Fixed(1)), num_requests=500, generators=Generators.of(3)
    )
    again = synthesize(arrivals=Poisson(5), lengths=LENGTHS, num_requests=500, generators=Generators.of(3))
    np.testing.assert_array_equal(one.arrival, other.arrival)
    assert one.prompt_tokens.tobytes() == again.prompt_tokens.tobytes()
    assert one.prompt_tokens.tolist() != other.prompt_tokens.tolist()


def by_session(trace):
    order = np.lexsort((trace.turn, trace.session))
    return np.split(order, np.flatnonzero(np.diff(trace.session[order])) + 1)


def test_a_conversation_grows_by_what_was_said_and_shares_all_of_it():
    sessions = Sessions(turns=Fixed(4), think_time_s=Fixed(10), new_tokens=Fixed(20), shared_prefix_tokens=40, groups=2)
    trace = synthesize(
        arrivals=Poisson(1), lengths=LENGTHS, sessions=sessions, num_requests=400, generators=Generators.of(1)
    )
    assert len(trace) == 400
    for rows in by_session(trace):
        assert trace.turn[rows].tolist() == list(range(len(rows)))
        assert np.isnan(trace.think_time[rows[0]])
        for a, b in pairwise(rows):
            assert trace.prompt_tokens[b] == trace.prompt_tokens[a] + trace.output_tokens[a] + 20
            mine = trace.prefix.row(a).tolist()
            assert trace.prefix.row(b).tolist()[: len(mine)] == mine
            assert trace.think_time[b] == 10
            assert trace.arrival[b] > trace.arrival[a] + 10
    # 40 shared tokens are two full blocks, one text per group; nothing else is shared between conversations.
    firsts = [tuple(trace.prefix.row(rows[0]).tolist()) for rows in by_session(trace)]
    assert len({ids[:2] for ids in firsts}) == 2
    assert len({ids[2] for ids in firsts}) == len(firsts)


def test_open_loop_conversations_have_no_think_time_but_its_gaps():
    sessions = Sessions(turns=Fixed(3), think_time_s=Fixed(7), closed_loop=False)
    trace = synthesize(
        arrivals=Poisson(1), lengths=LENGTHS, sessions=sessions, num_requests=300, generators=Generators.of(1)
    )
    assert trace.think_time is None
    for rows in by_session(trace):
        assert np.diff(trace.arrival[rows]) == pytest.approx(7)


def test_an_edit_ends_the_sharing_and_the_turns_after_it_follow_the_edit():
    sessions = Sessions(turns=Fixed(5), new_tokens=Fixed(50), edit_probability=0.5, closed_loop=False)
    trace = synthesize(
        arrivals=Poisson(1), lengths=LENGTHS, sessions=sessions, num_requests=3000, generators=Generators.of(2)
    )
    from traces.prefix import is_chained

    assert is_chained(trace.prefix)
    kept = []
    for rows in by_session(trace):
        for a, b in pairwise(rows):
            mine, next_ids = trace.prefix.row(a), trace.prefix.row(b)[: len(trace.prefix.row(a))]
            kept.append((mine == next_ids).mean())
    kept = np.array(kept)
    assert (kept < 1).mean() == pytest.approx(0.5, abs=0.03)
    assert kept[kept < 1].mean() == pytest.approx(0.5, abs=0.1)


def test_a_conversation_ends_before_it_outgrows_the_context():
    sessions = Sessions(turns=Fixed(50), max_context_tokens=1000)
    trace = synthesize(
        arrivals=Poisson(1), lengths=LENGTHS, sessions=sessions, num_requests=2000, generators=Generators.of(1)
    )
    assert (trace.prompt_tokens + trace.output_tokens).max() <= 1000
    assert trace.turn.max() < 15


def test_popular_groups_follow_zipf():
    sessions = Sessions(shared_prefix_tokens=16, groups=3, zipf=1.0)
    trace = synthesize(
        arrivals=Poisson(1), lengths=LENGTHS, sessions=sessions, num_requests=20_000, generators=Generators.of(1)
    )
    first = trace.prefix.ids[trace.prefix.offsets[:-1]]
    assert np.bincount(first)[:3] / 20_000 == pytest.approx(np.array([6, 3, 2]) / 11, abs=0.015)


def test_clients_have_their_shares_and_their_own_burstiness():
    clients = [
        Client("calm", 3, Gamma(1, 4), Lengths(Fixed(10), Fixed(1))),
        Client("bursty", 1, Gamma(1, 0.1), Lengths(Fixed(20), Fixed(2))),
        Client("at night", 1, RateCurve((0, 100, 100, 200), (2, 2, 0, 0)), Lengths(Fixed(30), Fixed(3))),
    ]
    trace = synthesize_clients(clients, rate=50, num_requests=50_000, generators=Generators.of(0))
    assert trace.rate == pytest.approx(50, rel=0.02)
    assert trace.tenant is not None
    shares = np.bincount(trace.tenant.codes) / len(trace)
    assert shares == pytest.approx([0.6, 0.2, 0.2], abs=0.02)
    assert cv(trace.arrival[trace.tenant.codes == 0]) == pytest.approx(0.5, abs=0.03)
    assert cv(trace.arrival[trace.tenant.codes == 1]) == pytest.approx(10**0.5, abs=0.3)
    assert (trace.prompt_tokens == 10 * (trace.tenant.codes + 1)).all()
    assert (trace.arrival[trace.tenant.codes == 2] % 200 <= 100 + 1e-6).all()


@pytest.mark.parametrize("name", ["prompt", "output"])
def test_lengths_that_are_all_zero_are_refused_and_not_quietly_made_one(name):
    for nothing in (Fixed(0), Uniform(0, 0), Fixed(0.4)):
        with pytest.raises(TraceError, match=f"every {name} drawn has 0 tokens"):
            Lengths(**({"prompt": Fixed(10), "output": Fixed(10)} | {name: nothing}))
    with pytest.raises(TraceError, match="new_tokens is 0"):
        Sessions(new_tokens=Fixed(0))


@pytest.mark.parametrize("sessions", [None, Sessions(turns=Fixed(3))])
def test_draws_below_one_token_are_counted_in_a_note(sessions):
    lengths = Lengths(prompt=Fixed(100), output=Normal(50, 50))
    trace = synthesize(
        arrivals=Poisson(10), lengths=lengths, sessions=sessions, num_requests=20_000, generators=Generators.of(0)
    )
    (note,) = trace.notes
    assert note == "16 % of the output lengths are drawn below 1 token and become 1"
    assert (trace.output_tokens == 1).mean() == pytest.approx(0.16, abs=0.02)
    quiet = Lengths(prompt=Fixed(100), output=LogNormal(50, 0.5))
    assert not synthesize(arrivals=Poisson(10), lengths=quiet, num_requests=10, generators=Generators.of(0)).notes
