"""GPUs and the nodes they sit in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from simulator.core.errors import HardwareError
from simulator.core.names import suggestion
from simulator.hardware.mig import OVERHEAD_BYTES, PROFILES

CATALOGUE = Path(__file__).with_name("catalogue.yaml")
GIB = 1024**3
# One message, software included: medians of small NCCL and custom all-reduce kernels (NVIDIA aiconfigurator 095f58a)
# on NVLink; over PCIe each message crosses host bridges. Network: RDMA over InfiniBand or RoCE.
# ici: the torus between TPUs; ethernet: RDMA ports between Gaudis; assumptions.
LINK_LATENCY_S = {"nvlink": 4.5e-6, "infinity_fabric": 8e-6, "pcie": 12e-6, "ici": 5e-6, "ethernet": 10e-6}
NETWORK_LATENCY_S = 10e-6
# A year's commitment over on demand, approximately: CoreWeave's H100 at 1.79 USD against 2.23 (gridstackhub.ai, 2026);
# published discounts go from 20 to 40 %, and for the H100 of March 2026 to next to nothing (SemiAnalysis: 2.35 USD).
RESERVED_SHARE = 0.8
Pricing = Literal["on-demand", "reserved", "spot"]


@dataclass(frozen=True, slots=True)
class Link:
    """``bandwidth``: bytes/s in one direction, per GPU."""

    kind: str  # nvlink | infinity_fabric | ici | ethernet | pcie | network
    bandwidth: float
    latency_s: float


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU and its surroundings. Peaks are dense, in FLOP/s, by number format; bandwidths in bytes/s."""

    name: str
    memory_bytes: int  # what a process sees: cudaMemGetInfo's total
    memory_bandwidth: float
    peak_flops: Mapping[str, float]
    tdp_w: float
    idle_w: float
    compute_capability: float
    link: Link  # between the GPUs of a node
    host_bandwidth: float  # bytes/s to the host's memory, one way
    network: Link  # between nodes, per GPU
    gpus_per_node: int
    price_per_hour: float | None  # USD on demand, None: no public offer known
    spot_price_per_hour: float | None  # USD, may be taken away at short notice
    price_source: str
    vendor: str
    aliases: tuple[str, ...]
    source: str
    sliced_from: str = ""  # the GPU that this is a MIG slice of
    compute_share: float = 1.0  # of that GPU's multiprocessors
    memory_share: float = 1.0  # of its memory, bandwidth and L2 cache

    def price(self, pricing: Pricing) -> float | None:
        """USD per hour, None: not known."""
        if pricing == "spot" or self.price_per_hour is None:
            return self.spot_price_per_hour if pricing == "spot" else None
        return self.price_per_hour * (RESERVED_SHARE if pricing == "reserved" else 1.0)

    def peak(self, math: str) -> tuple[str, float]:
        """(number format the product really runs in, FLOP/s): formats without tensor cores fall back to 16 bits.

        Weights stored narrower than the units can multiply are dequantised first, as Marlin-style kernels do.
        """
        if math == "mxfp4":  # fp4 weights against fp8 activations run at the fp8 rate, where fp4 units exist at all
            math = "fp8" if "fp4" in self.peak_flops else "bf16"
        for name in (math, "bf16", "fp16"):
            if name in self.peak_flops:
                return name, self.peak_flops[name]
        raise HardwareError(f"{self.name} has no tensor-core rate for {math}")

    def group_link(self, size: int) -> Link:
        """Slowest link a group of ``size`` GPUs talks over: the node's, or the network once it spans nodes."""
        return self.link if size <= self.gpus_per_node else self.network


def _key(name: str) -> str:
    return name.lower().replace("nvidia", "").translate(str.maketrans("", "", "-_. /"))


def _gpu(name: str, row: Mapping[str, Any]) -> Gpu:
    kind = row["link"]
    bandwidth = row["link_bandwidth"] if kind != "pcie" else row["pcie"]
    offers, spot = row.get("offers"), row.get("spot_offers")
    collected = f"median of {offers} on-demand offers, 2026-05-24" if offers else "no public offer known"
    collected += f", spot of {spot}" if spot else ""
    extra = row.get("price_source")
    return Gpu(
        name=name,
        memory_bytes=round(row["memory_gib"] * GIB),
        memory_bandwidth=row["bandwidth"] * 1e9,
        peak_flops={k: v * 1e12 for k, v in row["flops"].items()},
        tdp_w=float(row["tdp_w"]),
        idle_w=float(row["idle_w"]),
        compute_capability=float(row["capability"]),
        link=Link(kind, bandwidth * 1e9, LINK_LATENCY_S[kind]),
        host_bandwidth=row["pcie"] * 1e9,
        network=Link("network", row["network"] * 1e9, NETWORK_LATENCY_S),
        gpus_per_node=row["gpus_per_node"],
        price_per_hour=row.get("price"),
        spot_price_per_hour=row.get("spot"),
        price_source=f"{collected} ({extra})" if extra else collected,
        vendor=row.get("vendor", "NVIDIA"),
        aliases=tuple(row["aliases"]),
        source=row["source"],
    )


@cache
def gpus() -> Mapping[str, Gpu]:
    """The catalogue by name, in the order of the file."""
    rows = yaml.safe_load(CATALOGUE.read_text(encoding="utf-8"))
    return {name: _gpu(name, row) for name, row in rows.items()}


@cache
def _by_key() -> Mapping[str, Gpu]:
    return {_key(name): gpu for gpu in gpus().values() for name in (gpu.name, *gpu.aliases)}


def gpu(name: str) -> Gpu:
    """A GPU by name or alias; case, ``-``, ``_`` and a leading ``NVIDIA`` do not matter. Raises HardwareError.

    ``H100-SXM/3g.40gb`` is a slice of one, see ``mig.py``.
    """
    found = _by_key().get(_key(name))
    if found is None and "/" in name:
        whole, _, profile = name.partition("/")
        return sliced(gpu(whole), profile)
    if found is None:
        raise HardwareError(f"unknown GPU {name!r}", where="gpu", remedy=suggestion(name, gpus(), noun="known GPUs"))
    return found


def sliced(whole: Gpu, name: str) -> Gpu:
    """The GPU instance of ``whole`` with this profile. Raises HardwareError when there is none."""
    known = PROFILES.get(whole.name)
    if known is None:
        raise HardwareError(
            f"MIG slices of {whole.name} are not known", where="gpu", remedy=f"Slice one of {', '.join(PROFILES)}."
        )
    profile = known.get(name.lower().removeprefix("mig").strip("- "))
    if profile is None:
        raise HardwareError(
            f"{whole.name} has no MIG profile {name!r}",
            where="gpu",
            remedy=suggestion(name, known, noun="profiles"),
        )
    compute, memory, price = profile.multiprocessors, profile.memory / 8, profile.price_share
    label = next(key for key, other in known.items() if other == profile)
    return replace(
        whole,
        name=f"{whole.name}/{label}",
        memory_bytes=round(whole.memory_bytes * memory) - OVERHEAD_BYTES,
        memory_bandwidth=whole.memory_bandwidth * memory,
        peak_flops={number: flops * compute for number, flops in whole.peak_flops.items()},
        tdp_w=whole.tdp_w * price,
        idle_w=whole.idle_w * price,
        host_bandwidth=whole.host_bandwidth * profile.compute / 7,  # copy engines go with the compute slices
        network=replace(whole.network, bandwidth=whole.network.bandwidth * profile.compute / 7),
        gpus_per_node=whole.gpus_per_node * int(1 / price),
        price_per_hour=None if whole.price_per_hour is None else whole.price_per_hour * price,
        spot_price_per_hour=None if whole.spot_price_per_hour is None else whole.spot_price_per_hour * price,
        price_source=f"{price:.3g} of the whole GPU's: {whole.price_source}",
        aliases=(),
        source=f"{whole.source}; NVIDIA Multi-Instance GPU User Guide, profile {label}",
        sliced_from=whole.name,
        compute_share=compute,
        memory_share=memory,
    )
