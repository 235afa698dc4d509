"""A plan file of either kind."""

from __future__ import annotations

from pathlib import Path

from simulator.planning.load import PlanFile, read_plan
from simulator.planning.optimisers.file import OptimiserFile, asks_optimiser, read_optimisation
from simulator.scenario.source import read_source


def read_question(path: str | Path) -> PlanFile | OptimiserFile:
    """A search over a space of designs, or the question to a surveyed system's optimiser. Raises ScenarioErrors."""
    return read_optimisation(path) if asks_optimiser(read_source(path)) else read_plan(path)
