"""Sources of faults, one file each; importing this package registers those that ship."""

from simulator.faults import failures, spot, spot_trace  # noqa: F401 - imported to register them
from simulator.faults.source import FAULTS, Change, Faults, Loss, Surroundings

__all__ = ["FAULTS", "Change", "Faults", "Loss", "Surroundings"]
