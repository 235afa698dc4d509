"""The ``cluster`` fields of replicas that come and go, and the ``energy`` fields."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Literal

from pydantic import Field

from simulator.scenario.spec import (
    Bool,
    Bytes,
    Int,
    Name,
    NonNegative,
    NonNegativeNumber,
    Number,
    Positive,
    PositiveSeconds,
    Seconds,
    Str,
    spec,
)

Recovery = Literal["recompute", "finish", "migrate"]


@spec
class ColdStartSpec:
    """How long a replica takes from taking its GPUs to taking requests; they are paid for meanwhile."""

    total_s: Seconds | None = None
    """All of it; null: the sum of the parts below."""
    provision_s: Seconds = 0.0
    """Until the node is there. 0: it is; a cloud's virtual machine takes a minute or two."""
    container_s: Seconds = 10.0
    """Until the container runs, its image being on the node (an assumption; pulling 10 GB takes longer)."""
    weights_from: Literal["remote", "ssd", "dram"] = "remote"
    """Where the weights are: in a remote store, on the node's SSD, or in its memory."""
    loader: Literal["plain", "optimized"] = "plain"
    """plain: one copy after the other, through a loader of 1.7 GB/s. optimized: ServerlessLLM's, which streams through
    all tiers at once at the speed of the slowest."""
    remote_bytes_per_s: Bytes = 1.25e9
    """Bandwidth of the remote store per node (10 Gb/s, as in ServerlessLLM's cluster)."""
    ssd_bytes_per_s: Bytes = 6e9
    """Bandwidth of the node's SSD (one NVMe PCIe 4.0 drive)."""
    loader_bytes_per_s: Bytes = 1.7e9
    """Of the plain loader: Llama-2-70B in 84 s, OPT-30B in 34 s (ServerlessLLM, arXiv:2401.14351)."""
    nodes_keep: Literal["nothing", "ssd", "dram"] = "nothing"
    """Where a node keeps the weights it has loaded: a replica that starts where another one was scaled in takes them
    from there, and such places are taken first (ServerlessLLM's locality)."""
    engine_s: Seconds = 40.0
    """Memory profiling, compilation and CUDA graphs (an assumption: vLLM's logs say 20 to 60 s; arXiv:2606.07362)."""

    def __post_init__(self) -> None:
        if min(self.remote_bytes_per_s, self.ssd_bytes_per_s, self.loader_bytes_per_s) <= 0:
            raise ValueError("bandwidths must be more than 0.")
        if self.total_s is not None and self.nodes_keep != "nothing":
            raise ValueError("'nodes_keep' changes the parts of a start, so 'total_s' cannot be given beside it.")


@spec
class GroupScalingSpec:
    """An autoscaler of one group; the other fields are those of `cluster.scaling`."""

    policy: Name
    """Autoscaler: a registered name or package.module:Class."""
    options: dict[str, Bool | Int | Number | Str] = field(default_factory=dict)
    """The autoscaler's own options; a wrong name or value is answered with the right ones."""


@spec
class ScalingSpec:
    """Autoscaling: so many replicas as the load needs."""

    policy: Name
    """Autoscaler: a registered name (queue, utilization, kv-usage, freeness, predictive, scheduled, energy) or
    package.module:Class."""
    options: dict[str, Bool | Int | Number | Str] = field(default_factory=dict)
    """The autoscaler's own options; a wrong name or value is answered with the right ones."""
    interval_s: PositiveSeconds = 15.0
    """It looks so often (Kubernetes: 15 s)."""
    min_replicas: NonNegative = 1
    """Fewest replicas of each group that has no `min_replicas` of its own; 0: scale to zero."""
    max_replicas: Positive
    """Most replicas of each group that has no `max_replicas` of its own, starting and draining ones included."""
    drain: Recovery = "finish"
    """Requests of a replica that is scaled in: it finishes them, they are computed again elsewhere at once, or their
    KV moves."""
    drain_timeout_s: PositiveSeconds | None = None
    """Those still there then are computed again elsewhere; null: no limit."""


@spec
class FaultSpec:
    """A source of failures or reclaims."""

    policy: Name
    """Source: a registered name (failures, spot, spot-trace) or package.module:Class."""
    options: dict[str, Bool | Int | Number | Str] = field(default_factory=dict)
    """The source's own options; a wrong name or value is answered with the right ones. A `path` is relative to the
    scenario file."""
    detection_s: Seconds = 10.0
    """From a failure until the router knows: what it sends there meanwhile waits as long."""
    recovery: Recovery = "finish"
    """Between a warning and the end: finish what is there, compute it again elsewhere at once, or move its KV. What is
    left at the end is computed again elsewhere; tokens that were streamed are kept."""
    max_attempts: Positive = 10
    """A request that is lost so often has failed."""


@spec
class KvReplicationSpec:
    """Requests that a failure loses go on elsewhere from a copy of their KV, as in DéjàVu."""

    interval_tokens: Positive = 1
    """The KV of a request is copied whenever it has so many tokens more: what is computed again after a failure is less
    than that."""


@spec
class CarbonSpec:
    """Carbon intensity of the electricity, by the hour."""

    gco2_per_kwh: Annotated[tuple[NonNegativeNumber, ...], Field(min_length=1)] | None = None
    """One number per hour, repeated; a single one is constant."""
    region: Name | None = None
    """A zone of the shipped table, such as US-CAL-CISO, DE-LU or GB (`simulator/hardware/carbon.csv`): its mean day of
    2024 by the hour, UTC."""
    path: Name | None = None
    """CSV with a header and one row per hour, relative to the scenario file (.gz is read as it is)."""
    zone: Name | None = None
    """Column of the CSV."""
    start_hour: NonNegative = 0
    """Hour of the series (row, from 0) at which the simulation starts."""

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.gco2_per_kwh, self.region, self.path)) != 1:
            raise ValueError("give exactly one of 'gco2_per_kwh', 'region' and 'path'.")
        if (self.path is None) != (self.zone is None):
            raise ValueError("'path' and 'zone' go together.")


@spec
class EnergySpec:
    """What is counted of the GPUs' energy."""

    pue: Annotated[float, Field(strict=True, ge=1, allow_inf_nan=False)] = 1.0
    """Energy of the whole data center over that of the GPUs; 1: the GPUs alone."""
    carbon: CarbonSpec | None = None
    """Carbon intensity; null: carbon is not counted."""
