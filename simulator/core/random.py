"""Named random streams: one per subsystem, so that changing one leaves the others' draws alone."""

from __future__ import annotations

import hashlib

import numpy as np

from simulator.core.errors import UserError


class Streams:
    """Generators derived from one seed and a name; the order in which they are asked for does not matter.

    A stream is seeded by ``SeedSequence(seed, spawn_key=sha256(name))``: statistically independent of every other
    name and seed (numpy's SeedSequence guarantees it), equal on every machine and in every process.
    """

    def __init__(self, seed: int) -> None:
        if seed < 0:
            raise UserError(f"seed must be >= 0, not {seed}")
        self.seed = seed

    def stream(self, name: str) -> np.random.Generator:
        """A new generator at the start of the named stream; asking twice gives the same draws twice."""
        digest = hashlib.sha256(name.encode()).digest()
        key = tuple(int.from_bytes(digest[i : i + 4], "little") for i in range(0, 16, 4))
        return np.random.Generator(np.random.PCG64(np.random.SeedSequence(self.seed, spawn_key=key)))

    def child(self, name: str) -> Streams:
        """Streams for a part that has streams of its own (replica 7, sweep point 3)."""
        digest = hashlib.sha256(f"{self.seed}/{name}".encode()).digest()
        return Streams(int.from_bytes(digest[:8], "little"))


def streams(seed: int) -> Streams:
    """The named streams of a scenario seed (a non-negative integer)."""
    return Streams(seed)
