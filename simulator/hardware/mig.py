"""Slices of a GPU: NVIDIA's Multi-Instance GPU profiles.

A profile ``3g.40gb`` is three compute slices and four of eight memory slices; memory slices bring their share of
bandwidth and L2 cache. Sources: NVIDIA Multi-Instance GPU User Guide, supported MIG profiles (fractions of memory and
of SMs); multiprocessors of A100, H100 and H200 slices as ``nvidia-smi mig -lgip`` prints them. The guide's sevenths
stand for those of B200. Slices have no peer-to-peer links, so one engine runs on one slice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

OVERHEAD_BYTES = 1024**3 // 8  # 9.75 GiB are usable where a quarter of 39.5 GiB is 9.875


@dataclass(frozen=True, slots=True)
class Profile:
    """Share of the GPU's multiprocessors; compute slices of 7; memory slices of 8."""

    multiprocessors: float
    compute: int
    memory: int

    @property
    def price_share(self) -> float:
        """Of the whole GPU: what it takes from others, compute or memory."""
        return min(max(self.compute / 7, self.memory / 8), 1.0)


def _profiles(names: str, multiprocessors: tuple[float, ...]) -> dict[str, Profile]:
    """Profiles 1g, 1g with twice the memory, 2g, 3g, 4g, 7g."""
    slices = ((1, 1), (1, 2), (2, 2), (3, 4), (4, 4), (7, 8))
    return {
        name: Profile(sms, compute, memory)
        for name, sms, (compute, memory) in zip(names.split(), multiprocessors, slices, strict=True)
    }


AMPERE = tuple(14 * n / 108 for n in (1, 1, 2, 3, 4, 7))
HOPPER = tuple(n / 132 for n in (16, 26, 32, 60, 64, 132))
SEVENTHS = tuple(n / 7 for n in (1, 1, 2, 3, 4, 7))
A100_40 = _profiles("1g.5gb 1g.10gb 2g.10gb 3g.20gb 4g.20gb 7g.40gb", AMPERE)
A100_80 = _profiles("1g.10gb 1g.20gb 2g.20gb 3g.40gb 4g.40gb 7g.80gb", AMPERE)
PROFILES: Mapping[str, Mapping[str, Profile]] = {
    "A100-SXM-40GB": A100_40,
    "A100-PCIe-40GB": A100_40,
    "A100-SXM-80GB": A100_80,
    "A100-PCIe-80GB": A100_80,
    "H100-SXM": _profiles("1g.10gb 1g.20gb 2g.20gb 3g.40gb 4g.40gb 7g.80gb", HOPPER),
    "H200-SXM": _profiles("1g.18gb 1g.35gb 2g.35gb 3g.71gb 4g.71gb 7g.141gb", HOPPER),
    "B200": _profiles("1g.23gb 1g.45gb 2g.45gb 3g.90gb 4g.90gb 7g.180gb", SEVENTHS),
}
