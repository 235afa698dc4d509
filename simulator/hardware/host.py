"""Servers that GPUs stand in: what their CPUs, memories and disks do for an engine that offloads to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from simulator.core.errors import HardwareError
from simulator.core.names import suggestion
from simulator.hardware.gpu import GIB

CATALOGUE = Path(__file__).with_name("hosts.yaml")


@dataclass(frozen=True, slots=True)
class Host:
    """Bytes, bytes/s and FLOP/s of a whole server. Without a disk its figures are 0."""

    name: str
    memory_bytes: int
    memory_bandwidth: float
    flops: float
    pcie: float  # one way, of a slot
    disk_bytes: float
    disk_read: float
    disk_write: float
    aliases: tuple[str, ...]
    source: str


def _host(name: str, row: Mapping[str, Any]) -> Host:
    return Host(
        name,
        round(row["memory_gib"] * GIB),
        row["bandwidth"] * 1e9,
        row["flops"] * 1e12,
        row["pcie"] * 1e9,
        row.get("disk_tb", 0) * 1e12,
        row.get("disk_read", 0) * 1e9,
        row.get("disk_write", 0) * 1e9,
        tuple(row["aliases"]),
        row["source"],
    )


@cache
def hosts() -> Mapping[str, Host]:
    """The catalogue by name, in the order of the file."""
    rows = yaml.safe_load(CATALOGUE.read_text(encoding="utf-8"))
    return {name: _host(name, row) for name, row in rows.items()}


def host(name: str) -> Host:
    """A host by name or alias; case, ``-`` and ``_`` do not matter. Raises HardwareError."""

    def key(text: str) -> str:
        return text.lower().translate(str.maketrans("", "", "-_. "))

    for found in hosts().values():
        if key(name) in {key(known) for known in (found.name, *found.aliases)}:
            return found
    raise HardwareError(f"unknown host {name!r}", where="host", remedy=suggestion(name, hosts(), noun="known hosts"))
