"""The constrained bandit finds the cheapest replica that keeps deadlines, and its regret grows slower than time."""

from __future__ import annotations

import numpy as np

from simulator.routing.fleet import Floats
from simulator.scheduling.request import Request
from tests.routing.surroundings import build, requests
from traces.trace import Labels

WATTS = [1.0, 2.0, 4.0]
SLOW = {0: [0.6, 0.0, 0.0], 1: [0.0, 0.0, 0.0]}  # by class: chance that each replica is late


def play(turns: int, seed: int = 0) -> list[list[int]]:
    """Choices by class, in turn. A request takes a second, which is in time for its deadline of 2; or 3 s, late."""
    rng = np.random.default_rng(seed)
    codes = np.arange(turns) % 2
    trace = requests(turns, slo_class=Labels(codes.astype(np.int32), ("chat", "mail")))
    router, fleet = build("cs-ucb", trace, 3, watts=WATTS, deadlines_s="2, 20")
    found: list[list[int]] = [[], []]
    for row, kind in enumerate(codes.tolist()):
        now = 10.0 * row
        request = Request(row, now, 100, 10)
        chosen = router.route(request, np.arange(3), now)
        fleet.sent(chosen, 100)
        found[kind].append(chosen)
        late = rng.random() < SLOW[kind][chosen]
        fleet.ended(chosen, 100)
        router.finished(request, chosen, now + (3.0 if late else 1.0))
    return found


def regret(chosen: list[int], best: int) -> Floats:
    """Choices that were not the best one, summed over time."""
    return np.cumsum(np.asarray(chosen) != best).astype(np.float64)


def test_each_class_finds_the_cheapest_replica_that_is_in_time() -> None:
    chat, mail = play(4000)
    assert np.mean(np.asarray(chat[-500:]) == 1) > 0.9
    assert np.mean(np.asarray(mail[-500:]) == 0) > 0.9


def test_regret_grows_slower_than_time() -> None:
    chat, mail = play(20_000)
    for chosen, best in ((chat, 1), (mail, 0)):
        lost = regret(chosen, best)
        assert lost[-1] < 3 * lost[len(lost) // 10]  # ten times the time
        assert lost[-1] / len(lost) < 0.05


def test_nobody_is_fast_enough_so_the_one_that_is_most_often() -> None:
    trace = requests(600)
    router, fleet = build("cs-ucb", trace, 2, watts=[1.0, 2.0], default_deadline_s=2.0)
    rng = np.random.default_rng(0)
    chosen = []
    for row in range(600):
        now = 10.0 * row
        request = Request(row, now, 100, 10)
        chosen.append(router.route(request, np.arange(2), now))
        fleet.sent(chosen[-1], 100)
        fleet.ended(chosen[-1], 100)
        router.finished(request, chosen[-1], now + (1.0 if rng.random() < (0.2, 0.6)[chosen[-1]] else 3.0))
    assert np.mean(np.asarray(chosen[-200:]) == 1) > 0.8


def test_energy_is_shared_by_those_who_are_there() -> None:
    trace = requests(3)
    router, fleet = build("cs-ucb", trace, 1, watts=[6.0])
    one, two = Request(0, 0.0, 100, 10), Request(1, 1.0, 100, 10)
    for request in (one, two):
        router.route(request, np.arange(1), request.arrival)
        fleet.sent(0, 100)
    for request, time in ((one, 2.0), (two, 4.0)):
        fleet.ended(0, 100)
        router.finished(request, 0, time)
    # 6 J alone in the first second, 3 each in the second, then 12 for the other one.
    assert router._energy_uj[-1, 0].tolist()[:2] == [9_000_000, 15_000_000]  # type: ignore[attr-defined]
