"""Optimisers of surveyed systems, one file each; importing this package registers those that ship."""

from simulator.planning.optimisers import (  # noqa: F401 - to register them
    alpaserve,
    distserve,
    dynamollm,
    exegpt,
    helix,
    melange,
    splitwise,
)
from simulator.planning.optimisers.optimiser import (
    OPTIMISERS,
    Candidate,
    Design,
    NoOptions,
    Optimiser,
    Question,
    Simulated,
)

__all__ = ["OPTIMISERS", "Candidate", "Design", "NoOptions", "Optimiser", "Question", "Simulated"]
