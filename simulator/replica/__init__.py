"""One serving engine: spans of steps, and the records it leaves."""

from simulator.replica.engine import Engine
from simulator.replica.recorder import Recorder
from simulator.replica.records import RequestRecords, SimulationRecords, Status, StepRecords

__all__ = ["Engine", "Recorder", "RequestRecords", "SimulationRecords", "Status", "StepRecords"]
