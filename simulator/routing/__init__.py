"""Routers, one file each; importing this package registers those that ship."""

from simulator.routing import (  # noqa: F401 - imported to register them
    capacity_weighted,
    cs_ucb,
    freeness,
    least_heavy,
    least_kv,
    least_requests,
    least_tokens,
    length_predicted,
    lora_affinity,
    max_min,
    power_of_two,
    predicted_latency,
    prefix_aware,
    random,
    round_robin,
    session_affinity,
    slo_class,
    weighted,
)
from simulator.routing.fleet import Fleet
from simulator.routing.router import ROUTERS, Needs, Router, Surroundings

__all__ = ["ROUTERS", "Fleet", "Needs", "Router", "Surroundings"]
