"""The experience of readers: what the timing of tokens is worth to who reads them as they come."""

from __future__ import annotations

import numpy as np

from simulator.metrics.stats import Floats
from simulator.metrics.token_times import gaps_by_request, token_clock, token_ranges
from simulator.replica.records import SimulationRecords, Status


def quality_of_experience(
    records: SimulationRecords, *, expected_ttft_s: float = 1.0, expected_tokens_per_s: float = 4.8
) -> Floats:
    """QoE of each request (n,), from 0 to 1; NaN for requests that did not finish.

    A reader takes tokens as they come but no faster than ``expected_tokens_per_s``: token k is read at
    ``max(arrival of k, reading of k - 1 + pace)``. QoE is the area under the curve of tokens read, from the request's
    arrival to its last token's reading, over that under the expected curve, whose first token is read
    ``expected_ttft_s`` after the arrival and which then keeps the pace; being ahead of it is worth no more than
    keeping to it. Andes, Liu et al., 2024 (arXiv:2404.16283), equation 1; the defaults are its readers.
    One float per token: for modest runs.
    """
    requests = records.requests
    clock = token_clock(records)
    gaps = gaps_by_request(token_ranges(records, clock), clock, len(requests.arrival))
    pace_s = 1 / expected_tokens_per_s
    found = np.full(len(requests.arrival), np.nan)
    for row in np.flatnonzero(requests.status == Status.FINISHED).tolist():
        delay = float(requests.first_token[row] - requests.arrival[row])
        come = delay + np.concatenate([[0.0], np.cumsum(gaps[row])])  # s since the arrival
        steps = pace_s * np.arange(len(come))
        read = np.maximum.accumulate(come - steps) + steps
        expected = expected_ttft_s + steps
        end = max(read[-1], expected[-1])
        whole = float((end - expected).sum())  # 0: one token, in time
        found[row] = float((end - np.maximum(read, expected)).sum()) / whole if whole else 1.0
    return found
