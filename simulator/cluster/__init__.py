"""The clock: arrivals, replicas and, later, what lies between them."""

from simulator.cluster.simulation import simulate

__all__ = ["simulate"]
