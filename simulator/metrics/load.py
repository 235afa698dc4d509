"""What kind of load the records tell of, and how many requests waited, exactly."""

from __future__ import annotations

import numpy as np

from simulator.metrics.series import admitted_mask, count_at, prompt_hosts, waiting_interval
from simulator.metrics.stats import Floats, Stats, describe_over_time, grouped
from simulator.metrics.token_times import num_replicas, span_seconds
from simulator.replica.records import SimulationRecords

_LOOKED_AT = 4  # requests


def closed_loop_users(records: SimulationRecords) -> int | None:
    """Users of a closed loop, or None: requests come at times of their own.

    A closed loop shows in the records: after the first ones, which come together, every request comes at the very
    time at which another one has ended. None too where all come at once, and where users think between requests.
    """
    requests = records.requests
    arrival = requests.arrival[admitted_mask(records)]
    if not len(arrival):
        return None
    later = arrival[arrival > arrival.min()]
    if not len(later):
        return None
    if not all(np.any(requests.finish == time) for time in later[:_LOOKED_AT]):
        return None  # open arrivals end here, long before anything is sorted
    if not np.all(np.isin(later, requests.finish)):
        return None
    return len(arrival) - len(later)


def waiting_over_time(records: SimulationRecords, window: tuple[float, float]) -> Stats:
    """Time-weighted statistics of the requests that wait in the window (s), at every instant of it, idle ones too.

    From arrival to first admission by the request records. Preempted requests that wait again are what a span's
    ``num_waiting`` holds beyond those: the queue of a running batch shrinks and grows only between spans for them.
    """
    entered, left = waiting_interval(records)
    begin, end, again = _waiting_again(records)
    times = np.concatenate([entered, left, begin, end])
    change = np.concatenate([np.ones(len(entered)), -np.ones(len(left)), again, -again])
    order = np.argsort(times, kind="stable")
    times, level = times[order], np.cumsum(change[order])
    edges = np.clip(np.concatenate([[window[0]], times, [window[1]]]), *window)
    return describe_over_time(np.concatenate([[0.0], level]), np.diff(edges))


def _waiting_again(records: SimulationRecords) -> tuple[Floats, Floats, Floats]:
    """Start, end (s) and number of preempted requests waiting, of the spans that leave any behind."""
    steps, requests = records.steps, records.requests
    first = np.zeros(len(steps.start))
    if not steps.preempted.any():
        return np.zeros(0), np.zeros(0), np.zeros(0)
    kept = admitted_mask(records)
    leaves = np.where(np.isnan(requests.scheduled), np.inf, requests.scheduled)
    number = num_replicas(records)
    hosts = np.where(kept, prompt_hosts(records), -1)
    for rows, mine in zip(grouped(steps.replica, number), grouped(hosts, number), strict=True):
        first[rows] = count_at(requests.arrival[mine], leaves[mine], steps.start[rows])
    again = np.maximum(steps.num_waiting - first, 0.0)
    some = again > 0
    return steps.start[some], (steps.start + span_seconds(steps))[some], again[some]
