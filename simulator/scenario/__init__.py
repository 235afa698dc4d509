"""Floor 8: one YAML file is one experiment. ``run(load("scenario.yaml"))`` is all a notebook needs."""

from simulator.scenario.config import Scenario
from simulator.scenario.load import load
from simulator.scenario.result import Result
from simulator.scenario.run import run

__all__ = ["Result", "Scenario", "load", "run"]
