"""Synthetic traces: arrival processes, length distributions, conversations, and presets fitted to real traces."""

from traces.generate.arrivals import ARRIVALS, Arrivals, diurnal
from traces.generate.distributions import DISTRIBUTIONS, Distribution
from traces.generate.documents import Documents
from traces.generate.lengths import Lengths
from traces.generate.presets import PRESETS, Preset, generate, load_preset
from traces.generate.sessions import Sessions
from traces.generate.synthesize import Client, Generators, synthesize, synthesize_clients

__all__ = [
    "ARRIVALS",
    "DISTRIBUTIONS",
    "PRESETS",
    "Arrivals",
    "Client",
    "Distribution",
    "Documents",
    "Generators",
    "Lengths",
    "Preset",
    "Sessions",
    "diurnal",
    "generate",
    "load_preset",
    "synthesize",
    "synthesize_clients",
]
