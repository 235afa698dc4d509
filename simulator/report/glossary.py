"""Metric definitions, as the report and the documentation say them."""

from __future__ import annotations

GLOSSARY: tuple[tuple[str, str], ...] = (
    (
        "TTFT",
        (
            "Time to first token: first output token minus arrival at the engine, waiting included. A client over HTTP "
            "sees some milliseconds more: the API server's connection and tokenisation are not in it."
        ),
    ),
    ("TPOT", "Time per output token: (E2E − TTFT) / (output tokens − 1), one value per request."),
    ("ITL", "Inter-token latency: every gap between two consecutive tokens of a request, all requests pooled."),
    ("E2E", "End-to-end latency: last output token minus arrival."),
    ("Normalized latency", "E2E divided by the number of output tokens."),
    ("Queue time", "From arrival to the first step that works on the request."),
    (
        "Percentiles",
        "p99 is the value that 99 % of the samples stay at or below; linear interpolation between samples.",
    ),
    ("SLO", "Service level objective: limits on TTFT, TPOT, ITL or E2E that every request should meet."),
    (
        "SLO attainment",
        (
            "Share of requests that meet every limit. Rejected and failed requests miss it; a request still in flight "
            "counts once its outcome is certain. A request with one output token has no TPOT and meets that limit."
        ),
    ),
    ("Goodput", "Finished requests per second that meet every limit of the SLO."),
    ("Offered rate", "Requests per second that arrive, whether or not they are served."),
    (
        "Stable, backlogged, overloaded",
        (
            "Stable: requests finish as fast as they arrive. Overloaded: in the second half of the arrivals clearly "
            "fewer finish than arrive and the queue grows, so latency depends on how long the run lasts. Backlogged: "
            "neither is certain, because of a burst or a run too short to reach a steady state. In a closed loop the "
            "load follows what is served, so a queue of users is no overload."
        ),
    ),
    ("Running, waiting", "Requests in the engine's batch, and requests that wait to join it."),
    (
        "Utilization",
        (
            "Share of time that engines spend in steps. An engine with one request is as busy as one with a hundred: "
            "near 100 % does not mean full."
        ),
    ),
    (
        "KV usage",
        "Share of KV cache blocks owned by live requests. Cached prefixes that could be evicted count as free.",
    ),
    ("Preemption", "A running request loses its KV blocks to others; it waits again and recomputes them."),
    ("Prefix hit ratio", "Share of prompt tokens found in the prefix cache when the request was first admitted."),
    (
        "Decode with prefills",
        "Decode time spent in steps that also computed prompt tokens of other requests, which makes them longer.",
    ),
    (
        "Warm-up and cool-down",
        (
            "Cut by the measurement window: latencies are those of requests that arrive in it, throughput counts what "
            "happens in it. Nothing is cut unless the window says so."
        ),
    ),
)
