"""Windtunnel: a discrete-event simulator for LLM serving clusters.

``simulator.run``, ``sweep`` and ``plan`` are for notebooks (docs/planning.md).
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from simulator import native as native  # first: it decides where the modules below come from

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The notebook's functions stand on an upper floor and load pandas, so they come when they are asked for."""
    if name in {"run", "sweep", "plan"}:
        return getattr(import_module("simulator.planning.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
