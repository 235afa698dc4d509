"""The ``cluster.admission`` fields: who is let in, and who waits at the router."""

from __future__ import annotations

from dataclasses import field, fields
from typing import Literal

from simulator.cluster.admission import Admission
from simulator.scenario.spec import Bool, Name, NonNegative, Positive, PositiveNumber, PositiveSeconds, spec


@spec
class AdmissionSpec:
    """Who is let in. A request that is not is rejected at its arrival; whoever waits for its answer goes on."""

    requests_per_s: PositiveNumber | None = None
    """Requests let in per second on average (a token bucket); null: any."""
    burst_requests: PositiveNumber | None = None
    """Requests let in at once after a quiet time; null: those of one second, at least one."""
    tokens_per_s: PositiveNumber | None = None
    """Prompt tokens let in per second on average; null: any."""
    burst_tokens: PositiveNumber | None = None
    """Prompt tokens let in at once after a quiet time; a longer prompt never is. null: those of one second."""
    per_tenant: Bool = False
    """Each label of the trace's `tenant` column has such rates of its own."""
    max_in_flight: Positive | None = None
    """Requests in flight per replica; null: any number."""
    when_full: Literal["reject", "queue"] = "reject"
    """When all replicas it could go to have `max_in_flight`: a request is rejected (a 503), or waits at the router."""
    max_queue: NonNegative | None = None
    """Requests that may wait at the router; more are rejected. null: any number."""
    order: Literal["fifo", "deadline", "priority"] = "fifo"
    """Who leaves the router's queue first: first come; earliest arrival plus TTFT limit; smallest priority."""
    ttft_s: PositiveSeconds | None = None
    """TTFT limit of a request for `order: deadline` and `reject_predicted_miss`; null: that of the `slo`."""
    class_ttft_s: dict[Name, PositiveSeconds] = field(default_factory=dict)
    """The same for labels of the trace's `slo_class` column."""
    reject_predicted_miss: Bool = False
    """Turn away whose first token no replica is predicted to give within the limit, by its queue and cost model."""
    queue_timeout_s: PositiveSeconds | None = None
    """Who has waited at the router for so long is rejected; null: never."""

    def __post_init__(self) -> None:
        rates = {"burst_requests": self.requests_per_s, "burst_tokens": self.tokens_per_s}
        for name, rate in rates.items():
            if getattr(self, name) is not None and rate is None:
                raise ValueError(f"'{name}' needs '{name.removeprefix('burst_')}_per_s'.")
        if self.burst_requests is not None and self.burst_requests < 1:
            raise ValueError("'burst_requests' must be at least 1: a smaller bucket never holds a request.")
        if self.per_tenant and self.requests_per_s is None and self.tokens_per_s is None:
            raise ValueError("'per_tenant' needs 'requests_per_s' or 'tokens_per_s'.")
        if self.when_full == "queue" and self.max_in_flight is None:
            raise ValueError("'when_full: queue' needs 'max_in_flight'.")
        if (self.class_ttft_s or self.ttft_s) and not (self.reject_predicted_miss or self.order == "deadline"):
            raise ValueError("TTFT limits need 'reject_predicted_miss' or 'order: deadline'.")

    def plan(self, ttft_s: float | None) -> Admission:
        """ttft_s: limit of the SLO, where this has none of its own."""
        given = {f.name: getattr(self, f.name) for f in fields(Admission)}
        return Admission(**{**given, "ttft_s": ttft_s if self.ttft_s is None else self.ttft_s})
