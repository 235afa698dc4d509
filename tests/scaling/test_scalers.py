"""Autoscalers: the arithmetic of HPA and KEDA by hand, a forecast that sees no future, a clock."""

from __future__ import annotations

from math import ceil, pi, sin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.core.errors import PolicyError
from simulator.core.registry import first_line
from simulator.scaling import CONTROLLERS, SCALERS, GroupFacts, GroupView, Scaler, Surroundings, View

FACTS = GroupFacts("replicas", min_replicas=1, max_replicas=20, initial=2, cold_start_s=60.0, max_num_seqs=10)
AT_ONCE = {"stabilization_down_s": 0.0, "average_s": 0.0}


def scaler(name: str, facts: GroupFacts = FACTS, interval_s: float = 15.0, **options: bool | float | str) -> Scaler:
    return SCALERS.get(name)(Surroundings((facts,), interval_s), options)


def view(now: float, target: int, *, waiting: int = 0, running: int = 0, usage: float = 0.0, arrivals: int = 0) -> View:
    group = GroupView(target, target, 0, 0, waiting, running, usage, arrivals)
    return View(now, (group,))


def ask(one: Scaler, now: float, target: int, **state: float) -> int:
    return one.desired(view(now, target, **state))[0]  # type: ignore[arg-type]


def test_desired_is_the_total_over_the_target_rounded_up() -> None:
    one = scaler("queue", target_requests=8, **AT_ONCE)
    assert ask(one, 15.0, 2, waiting=10, running=15) == 4  # 25 / 8


def test_within_the_tolerance_nothing_changes() -> None:
    one = scaler("queue", target_requests=10, **AT_ONCE)
    assert ask(one, 15.0, 2, running=21) == 2  # 5 % over
    assert ask(one, 30.0, 2, running=23) == 3  # 15 % over


def test_up_at_once_down_only_to_the_most_of_the_window() -> None:
    one = scaler("queue", target_requests=10, stabilization_down_s=60, average_s=0)
    assert ask(one, 0.0, 2, running=60) == 6
    assert ask(one, 15.0, 6, running=30) == 6
    assert ask(one, 30.0, 6, running=10) == 6
    assert ask(one, 61.0, 6, running=10) == 3  # the 60 s ago is forgotten, the 30 of 46 s ago is not
    assert ask(one, 76.0, 3, running=10) == 1


def test_at_most_twice_as_many_or_four_more_in_fifteen_seconds() -> None:
    one = scaler("queue", target_requests=1, **AT_ONCE)
    assert ask(one, 0.0, 1, running=100) == 5
    assert ask(one, 5.0, 5, running=100) == 5  # of the 1 there was 5 s ago
    assert ask(one, 20.0, 5, running=100) == 10
    assert ask(one, 40.0, 10, running=100) == 20


def test_an_average_rides_out_a_burst() -> None:
    calm, nervous = scaler("queue", target_requests=10, average_s=60), scaler("queue", target_requests=10, average_s=0)
    for tick in range(4):
        for one in (calm, nervous):
            ask(one, 15.0 * tick, 2, running=20)
    assert ask(calm, 60.0, 2, running=40) == 3  # (20 + 20 + 20 + 40) / 4 = 25
    assert ask(nervous, 60.0, 2, running=40) == 4


def test_to_zero_after_the_cooldown_and_back_at_the_first_request() -> None:
    facts = GroupFacts("replicas", 0, 5, 1, 60.0, 10)
    one = scaler("queue", facts, target_requests=10, cooldown_s=100, **AT_ONCE)
    assert ask(one, 0.0, 1, running=1) == 1
    assert ask(one, 90.0, 1) == 1
    assert ask(one, 105.0, 1) == 0
    assert ask(one, 120.0, 0) == 0
    assert ask(one, 135.0, 0, waiting=1) == 1


def test_utilization_is_of_slots_and_kv_usage_of_blocks() -> None:
    assert ask(scaler("utilization", target=0.5, **AT_ONCE), 0.0, 2, running=18) == 4  # 1.8 of 2 x 10 slots, half full
    assert ask(scaler("kv-usage", target=0.6, **AT_ONCE), 0.0, 2, running=5, usage=0.9) == 3


@settings(max_examples=100, deadline=None)
@given(
    name=st.sampled_from(["queue", "utilization", "kv-usage"]),
    states=st.lists(st.tuples(st.integers(0, 300), st.integers(0, 200), st.floats(0, 1)), min_size=1, max_size=60),
    least=st.integers(0, 2),
)
def test_limits_hold_and_more_load_never_asks_for_less(
    name: str, states: list[tuple[int, int, float]], least: int
) -> None:
    facts = GroupFacts("replicas", least, 7, 2, 10.0, 10)
    one = scaler(name, facts)
    target = 2
    for tick, (waiting, running, usage) in enumerate(states):
        other = scaler(name, facts, **AT_ONCE)
        another = scaler(name, facts, **AT_ONCE)
        less = ask(other, 0.0, target, waiting=waiting, running=running, usage=usage)
        more = ask(another, 0.0, target, waiting=waiting + 50, running=running + 20, usage=min(usage + 0.2, 1.0))
        assert less <= more
        target = ask(one, 15.0 * tick, target, waiting=waiting, running=running, usage=usage)
        assert least <= target <= 7


def test_a_forecast_is_ready_when_a_daily_rise_comes_and_reactive_scaling_is_late() -> None:
    day, interval = 3600.0, 15.0  # a short day of a wave between 2 and 18 requests/s
    one = scaler("predictive", interval_s=interval, requests_per_s=2.0, season_s=day, time_constant_s=60, horizon_s=300,
                 down_delay_s=0)  # fmt: skip

    def rate(now: float) -> float:
        return 10 - 8 * sin(2 * pi * now / day)

    short_first, short_later = 0, 0
    ready: dict[int, int] = {}  # what was asked 300 s ago is ready now
    for tick in range(1, int(3 * day / interval)):
        now = tick * interval
        ready[tick + 20] = ask(one, now, 5, arrivals=round(rate(now) * interval))
        if tick in ready:
            short = ready[tick] < ceil(rate(now) / 2.0 * 0.9)
            short_first += short and now < day
            short_later += short and now >= day + 600
    assert short_first > 10  # it has not seen a day yet: the trend alone falls short
    assert short_later <= 2


def test_a_forecast_knows_the_past_only() -> None:
    one, other = scaler("predictive"), scaler("predictive")
    past = [10, 12, 14, 30]
    for tick, arrivals in enumerate(past):
        assert ask(one, 15.0 * tick, 1, arrivals=arrivals) == ask(other, 15.0 * tick, 1, arrivals=arrivals)
    assert ask(one, 60.0, 1, arrivals=500) > ask(other, 60.0, 1, arrivals=0)


def test_a_schedule_repeats_daily_and_wraps_around_midnight() -> None:
    one = scaler("scheduled", hours="7:8, 19.5:3")
    assert [ask(one, 3600.0 * hour, 1) for hour in (0, 6.9, 7, 19.4, 19.5, 23, 31)] == [3, 3, 8, 8, 3, 3, 8]
    late = scaler("scheduled", hours="7:8, 19:3", start_hour=6)
    assert ask(late, 3600.0, 1) == 8
    two = SCALERS.get("scheduled")(
        Surroundings((FACTS, GroupFacts("b", 0, 9, 1, 0.0, 4)), 15.0), {"hours": "0:2", "hours.b": "0:5"}
    )
    group = GroupView(1, 1, 0, 0, 0, 0, 0.0, 0)
    assert list(two.desired(View(0.0, (group, group)))) == [2, 5]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("queue", {"target": 3}, "unknown option 'target'"),
        ("queue", {"target_requests": 0}, "at least 0.001"),
        ("kv-usage", {"target": 1.5}, "from 0.001 to 1"),
        ("scheduled", {"hours": "25:1"}, "HOUR:REPLICAS"),
        ("scheduled", {"hours": "7"}, "HOUR:REPLICAS"),
        ("scheduled", {"hour": "7:1"}, "unknown option 'hour'"),
    ],
)
def test_wrong_options_are_answered_with_the_right_ones(
    name: str, options: dict[str, float | str], message: str
) -> None:
    with pytest.raises(PolicyError) as caught:
        scaler(name, **options)
    assert message in f"{caught.value} {caught.value.remedy}"


@pytest.mark.parametrize(
    "policy", [*(policy for _, policy in SCALERS.items()), *(policy for _, policy in CONTROLLERS.items())]
)
def test_every_policy_says_what_it_decides_and_where_it_comes_from(policy: type) -> None:
    text = policy.__doc__ or ""
    assert first_line(policy)
    assert all(word in text for word in ("Decides:", "Why it helps:", "Limits:", "Reference:"))


def test_freeness_moves_by_one_and_then_waits() -> None:
    one = scaler("freeness", out_below_tokens=10, in_above_tokens=60, average_s=10.0)

    def desired(now: float, target: int, freeness: float, starting: int = 0) -> int:
        group = GroupView(target, target - starting, starting, 0, 0, 5, 0.5, 0, freeness)
        return one.desired(View(now, (group,)))[0]

    assert desired(15.0, 2, 30.0) == 2
    assert desired(30.0, 2, 5.0) == 3
    assert desired(35.0, 3, 5.0, starting=1) == 3  # one is on its way
    assert desired(45.0, 3, 5.0) == 4
    assert desired(60.0, 4, 100.0) == 3
    assert desired(75.0, 3, 30.0) == 3
