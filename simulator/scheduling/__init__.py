"""Engine policies, one file each; importing this package registers those that ship."""

from simulator.scheduling import vllm  # noqa: F401 - imported to register it
from simulator.scheduling.args import EngineArgs
from simulator.scheduling.policy import POLICIES, Policy
from simulator.scheduling.request import Request
from simulator.scheduling.state import DECODE, EngineState, Step

__all__ = ["DECODE", "POLICIES", "EngineArgs", "EngineState", "Policy", "Request", "Step"]
