"""Routers, one file each; importing this package registers those that ship."""

from simulator.routing import least_requests, prefix_aware, round_robin  # noqa: F401 - imported to register them
from simulator.routing.fleet import Fleet
from simulator.routing.router import ROUTERS, Needs, Router, Surroundings

__all__ = ["ROUTERS", "Fleet", "Needs", "Router", "Surroundings"]
