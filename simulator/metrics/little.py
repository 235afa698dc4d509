"""Little's law, L = lambda W, with its two sides from independent records.

J. D. C. Little, "A Proof for the Queuing Formula: L = lambda W", Operations Research 9(3), 1961,
DOI 10.1287/opre.9.3.383.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.metrics.series import running_interval
from simulator.metrics.token_times import span_seconds
from simulator.replica.records import SimulationRecords


@dataclass(frozen=True, slots=True)
class LittlesLaw:
    """Requests running, on average over the run, by the engine's steps and by the requests' own times."""

    l_running: float  # time average of num_running over the span records
    rate_per_s: float  # lambda: requests that were scheduled, per second
    time_s: float  # W: mean time from first admission to the last token (or the horizon), preempted time included
    duration_s: float

    @property
    def lambda_w(self) -> float:
        return self.rate_per_s * self.time_s

    @property
    def relative_gap(self) -> float:
        """|L - lambda W| / max of both; 0 when nothing ran."""
        larger = max(self.l_running, self.lambda_w)
        return abs(self.l_running - self.lambda_w) / larger if larger else 0.0


def littles_law(records: SimulationRecords) -> LittlesLaw:
    """Both sides over the whole run [0, end].

    L comes from step records alone and lambda W from request records alone, so a lost request, a wrong batch size or
    a missing step shows. They agree to rounding when steps follow each other without a gap and nothing is
    preempted; a preempted request is not running while it waits again, which makes lambda W the larger side.
    """
    if records.end <= 0:
        return LittlesLaw(0.0, 0.0, 0.0, 0.0)
    l_running = float(records.steps.num_running @ span_seconds(records.steps)) / records.end
    begin, finish = running_interval(records)
    time = float(np.mean(finish - begin)) if len(begin) else 0.0
    return LittlesLaw(l_running, len(begin) / records.end, time, records.end)
