"""Records to tables: latency, throughput, SLOs and goodput, stability. Nothing here feeds back into a simulation."""

from __future__ import annotations

from simulator.metrics.analysis import Analysis, analyse
from simulator.metrics.frames import requests_frame, steps_frame
from simulator.metrics.little import LittlesLaw, littles_law
from simulator.metrics.slo import SLO_PRESETS, Slo, slo_preset
from simulator.metrics.stability import Stability, assess
from simulator.metrics.summary import Summary, summarize

__all__ = [
    "SLO_PRESETS",
    "Analysis",
    "LittlesLaw",
    "Slo",
    "Stability",
    "Summary",
    "analyse",
    "assess",
    "littles_law",
    "requests_frame",
    "slo_preset",
    "steps_frame",
    "summarize",
]
