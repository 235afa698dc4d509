"""Autoscalers and clock controllers, one file each; importing this package registers those that ship."""

from simulator.scaling import (  # noqa: F401 - to register them
    energy,
    freeness,
    kv_usage,
    polca,
    predictive,
    queue,
    scheduled,
    slo_clock,
    utilization,
)
from simulator.scaling.clocks import CONTROLLERS, ClockController, Order
from simulator.scaling.profile import Profile
from simulator.scaling.scaler import SCALERS, GroupFacts, GroupView, Scaler, Surroundings, View

__all__ = [
    "CONTROLLERS",
    "SCALERS",
    "ClockController",
    "GroupFacts",
    "GroupView",
    "Order",
    "Profile",
    "Scaler",
    "Surroundings",
    "View",
]
