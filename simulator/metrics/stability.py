"""Is the system keeping up with what is offered? ``stable | backlogged | overloaded``, by a documented rule.

The offered load runs from the first arrival to the last one (or the horizon, if that comes first). Over the second
half of that period, when a system that keeps up has warmed up, let ``a`` be the arrivals, ``c`` the requests that
finished and ``deficit = a - c`` the growth of the work in flight.

overloaded   The deficit is beyond chance and substance (more than 3 sqrt(a) and more than 2 % of a), and at least half
             of it is a waiting queue that grew meanwhile: served more slowly than offered, latency depends on how
             long one watches. Or: no request was served at all because every one was rejected.
backlogged   Not that clear, but not in steady state either: the same deficit without a growing queue (the run ends
             before it warmed up); or nothing has finished yet; or in some quarter of the period requests waited longer
             on average than it takes to serve one (a burst, later worked off). Few servers queue for long even in
             steady state (M/M/1 at 80 % load waits for 4 service times), so below 5 requests in service on
             average the wait must exceed 5 service times over that average (at most 5 of them).
stable       Neither.

In a closed loop (``load.closed_loop_users``) every user waits for its answer, so requests arrive as fast as they finish
by construction and none of this applies: such a run is stable, however long the queue, unless fewer than two requests
per user have finished, when the first wave is most of what was seen (backlogged).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from simulator.metrics.load import closed_loop_users
from simulator.metrics.series import admitted_mask, count_at, waiting_interval
from simulator.replica.records import SimulationRecords, Status

Verdict = Literal["stable", "backlogged", "overloaded"]


@dataclass(frozen=True, slots=True)
class Stability:
    """Verdict with its evidence; see the module's text for the rule."""

    verdict: Verdict
    reason: str
    offered_request_per_s: float | None  # over the period of arrivals; None: all at once, or a closed loop
    second_half_arrivals: int
    second_half_finished: int
    queue_growth: float  # waiting requests at the end of the period minus at its middle
    waiting_at_end: int  # when arrivals end
    longest_quarter_wait_s: float  # largest of the four mean queue times
    mean_service_s: float  # scheduled to finish, finished requests
    closed_loop_users: int | None = None


def assess(records: SimulationRecords) -> Stability:
    """Apply the rule of this module to a whole run (warm-up included: the cut is for percentiles)."""
    requests = records.requests
    kept = admitted_mask(records)
    arrival = requests.arrival[kept]
    if not len(arrival):
        return _nothing_admitted(records)
    first, last = float(arrival.min()), float(min(arrival.max(), records.end))
    middle = (first + last) / 2.0
    finish = requests.finish[kept & (requests.status == Status.FINISHED)]
    arrivals = int(np.sum(arrival > middle))
    finished = int(np.sum((finish > middle) & (finish <= last)))
    entered, left = waiting_interval(records)
    at_middle, at_end = count_at(entered, left, np.asarray([middle, last]))
    service = (requests.finish - requests.scheduled)[requests.status == Status.FINISHED]
    mean_service = float(service.mean()) if len(service) else float("nan")
    wait = _longest_quarter_wait(entered, left - entered, first, last)
    growth = float(at_end - at_middle)
    in_service = len(service) * mean_service / max(last - first, mean_service) if len(service) else 0.0
    patience = mean_service * max(1.0, 5.0 / max(1.0, in_service))
    users = closed_loop_users(records)
    if users is not None:
        verdict, reason = _closed_loop(users, len(finish))
    else:
        impatient = wait if wait > patience else None
        verdict, reason = _verdict(arrivals, finished, growth, impatient=impatient, served=len(finish))
    return Stability(
        verdict=verdict,
        reason=reason,
        offered_request_per_s=(len(arrival) - 1) / (last - first) if last > first and users is None else None,
        second_half_arrivals=arrivals,
        second_half_finished=finished,
        queue_growth=growth,
        waiting_at_end=int(at_end),
        longest_quarter_wait_s=wait,
        mean_service_s=mean_service,
        closed_loop_users=users,
    )


def _closed_loop(users: int, served: int) -> tuple[Verdict, str]:
    who = "One user sends" if users == 1 else f"{users:,} users each send"
    loop = f"{who} the next request when the last one has ended (a closed loop)"
    if served < 2 * users:
        return "backlogged", (
            f"{loop}, and {served:,} requests finished: too few per user to see beyond the first wave."
        )
    return "stable", f"{loop}, so the load follows what is served and the queue cannot outgrow the users."


def _verdict(
    arrivals: int, finished: int, growth: float, *, impatient: float | None, served: int
) -> tuple[Verdict, str]:
    deficit = arrivals - finished
    growing = deficit > max(3.0 * arrivals**0.5, 0.02 * arrivals)
    if growing and growth >= 0.5 * deficit:
        return "overloaded", (
            f"In the second half of the arrivals {arrivals:,} requests came and {finished:,} finished, "
            f"while the waiting queue grew by {growth:,.0f}."
        )
    if not served:
        return "backlogged", "No request has finished by the end of the run."
    if growing:
        return "backlogged", (
            f"Work in flight was still growing when arrivals ended ({arrivals:,} came and {finished:,} finished in "
            "their second half): the run is too short to have reached a steady state."
        )
    if impatient is not None:
        return "backlogged", (
            f"For a quarter of the run requests waited {impatient:,.2f} s on average, long against the time it takes "
            "to serve one: a queue built up, though it did not keep growing."
        )
    return "stable", "Requests finish as fast as they arrive and the waiting queue does not grow."


def _longest_quarter_wait(entered: np.ndarray, waits: np.ndarray, first: float, last: float) -> float:
    """Largest mean wait (s) over the arrivals of each quarter of the period."""
    span = last - first
    quarter = np.zeros(len(entered), dtype=np.int64)
    if span > 0:
        quarter = np.clip(((entered - first) / span * 4).astype(np.int64), 0, 3)
    counts = np.bincount(quarter, minlength=4)
    sums = np.bincount(quarter, weights=waits, minlength=4)
    return float(np.max(sums / np.maximum(counts, 1)))


def _nothing_admitted(records: SimulationRecords) -> Stability:
    if len(records.requests.arrival) and records.requests.arrival.min() > records.end:
        reason = "No request arrived before the end of the run."
        return Stability("stable", reason, None, 0, 0, 0.0, 0, 0.0, float("nan"))
    offered = len(records.requests.arrival)
    verdict: Verdict = "overloaded" if offered else "stable"
    reason = f"Not one of the {offered:,} offered requests could be served." if offered else "No request was offered."
    return Stability(verdict, reason, None, 0, 0, 0.0, 0, 0.0, float("nan"))
