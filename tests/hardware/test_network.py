"""Links shared fairly: against cases worked out by hand, and against what max-min fairness means."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.core.errors import HardwareError
from simulator.hardware.network import Channel, Flow, Network


def network(*bandwidths: float) -> Network:
    return Network([Channel(f"link {i}", bandwidth) for i, bandwidth in enumerate(bandwidths)])


def over(*channels: int) -> dict[int, float]:
    return dict.fromkeys(channels, 1.0)


def test_two_flows_halve_a_link_and_the_one_left_gets_all_of_it() -> None:
    """10 bytes/s. A: 100 bytes from 0 s. B: 20 bytes from 2 s. Until 2 s A sends 20; then both get 5, B is through at
    6 s and A has 60 left, which take 6 s more."""
    net = network(10.0)
    a = net.start(100.0, over(0), 0.0)
    assert (a.rate, net.next_end) == (10.0, 10.0)
    b = net.start(20.0, over(0), 2.0)
    assert (a.rate, b.rate, net.next_end) == (5.0, 5.0, 6.0)
    assert net.ended(6.0) == [b]
    assert (a.rate, net.next_end) == (10.0, 12.0)
    assert net.ended(12.0) == [a]
    assert net.next_end == inf
    assert net.carried == [120.0]


def test_the_textbook_case() -> None:
    """Bertsekas and Gallager, figure 6.13's kind: link 0 of 1 carries A and B, link 1 of 2 carries B and C, link 2 of 6
    C alone and D. A and B get 1/2 of link 0, C the 3/2 that B leaves of link 1, D the 9/2 that C leaves of link 2."""
    net = network(1.0, 2.0, 6.0)
    a, b = net.start(1e3, over(0), 0.0), net.start(1e3, over(0, 1), 0.0)
    c, d = net.start(1e3, over(1, 2), 0.0), net.start(1e3, over(2), 0.0)
    assert [flow.rate for flow in (a, b, c, d)] == [0.5, 0.5, 1.5, 4.5]


def test_a_flow_that_cannot_use_its_share_leaves_it_to_others() -> None:
    net = network(10.0)
    slow, fast = net.start(1e3, over(0), 0.0, cap=2.0), net.start(1e3, over(0), 0.0)
    assert (slow.rate, fast.rate) == (2.0, 8.0)
    alone = Network([]).start(6.0, {}, 1.0, cap=2.0)
    assert alone.end == 4.0


def test_bytes_divided_among_links_load_each_with_their_part() -> None:
    """Half of the flow's bytes leave each of two nodes of 10 bytes/s: 20 bytes/s together."""
    net = network(10.0, 10.0)
    flow = net.start(100.0, {0: 0.5, 1: 0.5}, 0.0)
    assert flow.rate == 20.0
    assert net.ended(5.0) == [flow]
    assert net.carried == [50.0, 50.0]


def test_whoever_shares_no_link_is_left_alone() -> None:
    net = network(10.0, 10.0)
    far = net.start(70.0, over(1), 0.0)
    end = far.end
    net.start(1.0, over(0), 0.3)
    net.start(1.0, over(0), 0.7)
    assert (far.end, far.since) == (end, 0.0)


def test_nothing_takes_no_time_and_bytes_are_counted_as_they_go() -> None:
    net = network(4.0)
    nothing = net.start(0.0, over(0), 3.0)
    assert net.ended(3.0) == [nothing]
    flow = net.start(100.0, over(0), 3.0)
    net.settle(6.0)
    assert net.carried == [12.0]
    assert flow.remaining == 88.0
    assert net.ended(flow.end) == [flow]
    assert net.carried == [100.0]


def test_a_link_without_bandwidth_is_refused() -> None:
    with pytest.raises(HardwareError, match="link 0"):
        network(0.0)


LINKS = 5
START = st.tuples(
    st.floats(0.0, 2.0),  # s after the one before
    st.floats(0.0, 100.0),  # bytes
    st.lists(st.integers(0, LINKS - 1), min_size=1, max_size=3, unique=True),
    st.sampled_from([inf, inf, 3.0]),
)


def fair(net: Network, flows: list[Flow]) -> None:
    """No link is over its capacity; and of every flow, its own cap or a full link stands in the way, on which nobody
    gets more than it. That is max-min fairness: it could only grow at the cost of one that has no more."""
    load = [sum(flow.rate for flow in flows if i in dict(flow.path)) for i in range(LINKS)]
    full = [used >= channel.bandwidth * (1 - 1e-9) for used, channel in zip(load, net.channels, strict=True)]
    for used, channel in zip(load, net.channels, strict=True):
        assert used <= channel.bandwidth * (1 + 1e-9)
    for flow in flows:
        assert flow.rate <= flow.cap
        most = [
            full[i] and all(other.rate <= flow.rate * (1 + 1e-9) for other in flows if i in dict(other.path))
            for i, _ in flow.path
        ]
        assert flow.rate == flow.cap or any(most)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.floats(0.5, 20.0), min_size=LINKS, max_size=LINKS), st.lists(START, min_size=1, max_size=12))
def test_rates_are_max_min_fair_and_every_byte_gets_through(
    bandwidths: list[float], starts: list[tuple[float, float, list[int], float]]
) -> None:
    net, now = network(*bandwidths), 0.0
    under_way: list[Flow] = []
    sent = [0.0] * LINKS

    def until(time: float) -> None:
        while net.next_end <= time:
            at = net.next_end
            for flow in net.ended(at):
                under_way.remove(flow)
            fair(net, under_way)

    for wait, size, links, cap in starts:
        now += wait
        until(now)
        flow = net.start(size, over(*links), now, cap=cap)
        under_way.append(flow)
        for link in links:
            sent[link] += size
        fair(net, [f for f in under_way if f.remaining])
        assert flow.end >= now + size / min(bandwidths[i] for i in links) - 1e-9
    until(1e9)
    assert not under_way
    assert net.carried == pytest.approx(sent, rel=1e-9, abs=1e-9)
