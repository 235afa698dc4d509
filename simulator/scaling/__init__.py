"""Autoscalers, one file each; importing this package registers those that ship."""

from simulator.scaling import freeness, kv_usage, predictive, queue, scheduled, utilization  # noqa: F401 - to register them
from simulator.scaling.scaler import SCALERS, GroupFacts, GroupView, Scaler, Surroundings, View

__all__ = ["SCALERS", "GroupFacts", "GroupView", "Scaler", "Surroundings", "View"]
