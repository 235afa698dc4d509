"""What does not go together, as one table.

Every mechanism of an engine or a cluster works alone. Where two of them together are not modelled, their pair stands in
``APART``; a scenario that asks for both is refused before anything is built. What a mechanism *needs* is checked where
it is built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from simulator.core.errors import ScenarioError
from simulator.model.architecture import Model
from simulator.scenario.cluster import ClusterSpec, GroupSpec
from simulator.scenario.config import Scenario
from simulator.scenario.engine import EngineSpec, HardwareSpec
from simulator.scheduling import POLICIES, EngineArgs, Policy


@dataclass(frozen=True)
class Design:
    """One group of replicas. ``scenario``: with the group's own model, hardware and engine. ``args``: as resolved."""

    scenario: Scenario
    group: GroupSpec
    args: EngineArgs
    model: Model

    @property
    def engine(self) -> EngineSpec:
        return self.scenario.engine

    @property
    def hardware(self) -> HardwareSpec:
        return self.scenario.hardware

    @property
    def cluster(self) -> ClusterSpec:
        return self.scenario.cluster

    @property
    def policy(self) -> type[Policy]:
        return POLICIES.get(self.args.policy)

    @property
    def shared(self) -> bool:
        """Whether other engines run on its GPUs."""
        return self.group.shares is not None or any(other.shares == self.group.name for other in self.cluster.groups)

    @property
    def rescues(self) -> bool:
        """Whether requests take their KV along when their replica has to go."""
        scaling, faults = self.cluster.scaling, self.cluster.faults
        return any(f.recovery == "migrate" for f in faults) or (scaling is not None and scaling.drain == "migrate")

    @property
    def bounded(self) -> bool:
        """Whether requests hold other than one block per ``block_size`` tokens."""
        spec = self.scenario.model.kv_compression
        kv = None if spec is None else spec.build()
        return kv is not None and (kv.keep_tokens is not None or bool(kv.residual_tokens))

    @property
    def kv_away(self) -> bool:
        offload = self.engine.offload
        return offload is not None and bool(offload.kv_host or offload.kv_disk)


@dataclass(frozen=True)
class Feature:
    """``where``: the field that asks for it. ``on``: whether a design does."""

    where: str
    on: Callable[[Design], bool]


PIPELINE, DATA_RANKS, EPLB = "pipeline stages", "data-parallel ranks", "the expert load balancer"
PREFILL_RANKS, DECODE_RANKS, LAYOUT = "prefill context ranks", "decode context ranks", "a 2D tensor-parallel layout"
SPECULATION, ADAPTERS, FINETUNING, CHUNKS = "speculation", "adapters", "fine-tuning", "chunks side by side"
CASCADE, NO_PREFIXES = "attention that reads shared prefixes once", "an engine without prefix caching"
PREFIXES, TIERS, WINDOW = "prefix caching", "KV tiers", "sliding windows"
ASIDE = "KV loads beside the steps"
BOUNDED = "KV compression that bounds requests"
SPARSITY = "contextual sparsity"
OFFLOAD, KV_AWAY, EXPERTS_AWAY = "weights or KV outside the GPU", "KV outside the GPU", "experts outside the GPU"
LOCKED, CLOCKS = "power caps and locked clocks", "clocks that change"
NODES = "a placement over unlike nodes"
SHARED, LENDS = "GPUs that engines share", "KV memory that replicas lend"
ELASTIC, SLICES = "an engine policy that regroups its GPUs", "an engine policy that answers in slices"
KEEPS, RESERVES = "an engine policy that keeps KV between turns", "an engine policy that reserves memory at admission"
PROMISES = "an engine policy that promises memory at admission"
PADS = "an engine policy that pads its batches"
PREDICTION = "admission that predicts TTFT"
DISAGGREGATION, MIGRATION, LIFE = "disaggregation", "migration", "scaling and faults"
COPIES, RESCUE = "copies of KV", "drains that migrate"

FEATURES: Mapping[str, Feature] = {
    PIPELINE: Feature("engine.pipeline_parallel_size", lambda d: d.args.pipeline_parallel_size > 1),
    DATA_RANKS: Feature("engine.data_parallel_size", lambda d: d.args.data_parallel_size > 1),
    EPLB: Feature("engine.enable_eplb", lambda d: d.args.enable_eplb),
    PREFILL_RANKS: Feature("engine.prefill_context_parallel_size", lambda d: d.args.prefill_context_parallel_size > 1),
    DECODE_RANKS: Feature("engine.decode_context_parallel_size", lambda d: d.args.decode_context_parallel_size > 1),
    LAYOUT: Feature("engine.tensor_parallel_layout", lambda d: d.engine.tensor_parallel_layout != "1d"),
    SPECULATION: Feature("engine.speculative_config", lambda d: d.args.speculation is not None),
    ADAPTERS: Feature("engine.lora_config", lambda d: d.engine.lora_config is not None),
    FINETUNING: Feature("engine.finetuning", lambda d: d.engine.finetuning is not None),
    CHUNKS: Feature("engine.parallel_chunks", lambda d: d.engine.parallel_chunks),
    PREFIXES: Feature("engine.enable_prefix_caching", lambda d: bool(d.args.enable_prefix_caching)),
    CASCADE: Feature("engine.shared_prefix_attention", lambda d: d.args.shared_prefix_attention != "none"),
    NO_PREFIXES: Feature("engine.enable_prefix_caching", lambda d: not d.args.enable_prefix_caching),
    TIERS: Feature("engine.kv_tiers", lambda d: bool(d.engine.kv_tiers)),
    ASIDE: Feature(
        "engine.kv_tier_load",
        lambda d: bool(d.engine.kv_tiers) and (d.engine.kv_tier_load == "async" or d.engine.kv_tier_prefetch > 0),
    ),
    WINDOW: Feature("model", lambda d: d.model.sliding_window is not None),
    BOUNDED: Feature("model.kv_compression", lambda d: d.bounded),
    SPARSITY: Feature("model.contextual_sparsity", lambda d: d.scenario.model.contextual_sparsity is not None),
    OFFLOAD: Feature("engine.offload", lambda d: d.engine.offload is not None or bool(d.engine.cpu_offload_gb)),
    KV_AWAY: Feature("engine.offload", lambda d: d.kv_away),
    EXPERTS_AWAY: Feature(
        "engine.experts.cached_experts",
        lambda d: d.engine.experts is not None and d.engine.experts.cached_experts is not None,
    ),
    NODES: Feature("engine.placement", lambda d: d.engine.placement is not None),
    LOCKED: Feature("hardware", lambda d: d.hardware.power_cap_w is not None or d.hardware.clock != 1.0),
    CLOCKS: Feature("cluster.clocks", lambda d: d.cluster.clocks is not None),
    SHARED: Feature("cluster.groups.shares", lambda d: d.shared),
    LENDS: Feature("cluster.groups.lends", lambda d: d.group.lends),
    ELASTIC: Feature("engine.policy", lambda d: d.policy.elastic),
    SLICES: Feature("engine.policy", lambda d: d.policy.slice_of(d.args) > 0),
    KEEPS: Feature("engine.policy", lambda d: d.policy.keeps),
    RESERVES: Feature("engine.policy", lambda d: not d.policy.grows),
    PROMISES: Feature("engine.policy", lambda d: d.policy.promises),
    PADS: Feature("engine.policy", lambda d: d.policy.pads),
    PREDICTION: Feature(
        "cluster.admission.reject_predicted_miss",
        lambda d: d.cluster.admission is not None and d.cluster.admission.reject_predicted_miss,
    ),
    DISAGGREGATION: Feature("cluster.disaggregation", lambda d: d.cluster.disaggregated is not None),
    MIGRATION: Feature("cluster.migration", lambda d: d.cluster.migration is not None),
    LIFE: Feature("cluster.scaling", lambda d: d.cluster.scaling is not None or bool(d.cluster.faults)),
    COPIES: Feature("cluster.kv_replication", lambda d: d.cluster.kv_replication is not None),
    RESCUE: Feature("cluster.scaling", lambda d: d.rescues),
}

_RANKS = (PIPELINE, DATA_RANKS, PREFILL_RANKS)
_MOVES = (DISAGGREGATION, MIGRATION, RESCUE, COPIES)  # requests that come with KV computed elsewhere
_ACTS = (DISAGGREGATION, MIGRATION, LIFE)  # who takes requests out of engines, or brings them in, as they run

APART: tuple[tuple[str, tuple[str, ...]], ...] = (
    (DATA_RANKS, (PIPELINE, LOCKED, *_ACTS)),
    (EPLB, (PIPELINE, LOCKED, TIERS, *_ACTS)),
    (ELASTIC, (SHARED, TIERS, ADAPTERS, BOUNDED, LOCKED, *_ACTS)),
    (PREFILL_RANKS, (PIPELINE, DATA_RANKS)),
    (DECODE_RANKS, (PIPELINE, DATA_RANKS)),
    (SPECULATION, (*_RANKS, DECODE_RANKS, EPLB, LOCKED, SHARED, TIERS, BOUNDED, COPIES)),
    (ADAPTERS, (PIPELINE, DATA_RANKS, EPLB, SPECULATION, SHARED, TIERS, BOUNDED, *_MOVES)),
    (OFFLOAD, (ADAPTERS, FINETUNING, LAYOUT, LOCKED, CLOCKS)),
    (KV_AWAY, (TIERS, *_MOVES)),
    (EXPERTS_AWAY, (LOCKED, CLOCKS)),
    (FINETUNING, (*_RANKS, DECODE_RANKS, EPLB, ELASTIC, ADAPTERS, SPECULATION, LOCKED, CLOCKS)),
    (CHUNKS, (*_RANKS, EPLB, ELASTIC, SPECULATION, ADAPTERS, SHARED, LENDS, DISAGGREGATION)),
    (
        CASCADE,
        (
            *(*_RANKS, DECODE_RANKS, EPLB, SPECULATION, ADAPTERS, FINETUNING, CHUNKS, BOUNDED, WINDOW),
            *(OFFLOAD, EXPERTS_AWAY, NODES, LOCKED, CLOCKS, SHARED, LENDS, ELASTIC, RESERVES, *_MOVES),
            NO_PREFIXES,
        ),
    ),
    (TIERS, (*_RANKS, DECODE_RANKS)),
    (ASIDE, (CHUNKS, *_MOVES)),
    (BOUNDED, _MOVES),
    (SHARED, (DATA_RANKS, EPLB, TIERS, LOCKED, KEEPS, *_ACTS)),
    (
        LENDS,
        (
            *(*_RANKS, DECODE_RANKS, PREFIXES, TIERS, SHARED, BOUNDED, ADAPTERS, SPECULATION, FINETUNING, OFFLOAD),
            *(WINDOW, LOCKED, ELASTIC, KEEPS, RESERVES, *_ACTS),
        ),
    ),
    (SPARSITY, (NODES, LENDS, ELASTIC, FINETUNING, LOCKED, CLOCKS)),
    (CLOCKS, (PIPELINE, DATA_RANKS, EPLB, SHARED, LENDS, ELASTIC, SPECULATION)),
    (NODES, (LOCKED, CLOCKS, SHARED, LENDS, PREDICTION, *_ACTS)),
    (SLICES, _ACTS),
    (PADS, (LIFE,)),
    (MIGRATION, (DISAGGREGATION, RESERVES, PROMISES)),
    (COPIES, (DISAGGREGATION, MIGRATION, RESERVES, PROMISES)),
    (RESCUE, (RESERVES, PROMISES)),
)


def pairs() -> Iterator[tuple[str, str]]:
    """Every pair that does not go together, once."""
    for feature, others in APART:
        for other in others:
            yield feature, other


def check_together(design: Design) -> None:
    """Raises ScenarioError where a design asks for two features that are not modelled together."""
    on = {name for name, feature in FEATURES.items() if feature.on(design)}
    for one, other in pairs():
        if one in on and other in on:
            raise _apart(design, one, other)


def _apart(design: Design, one: str, other: str) -> ScenarioError:
    groups = [spec.name for spec in design.cluster.groups]
    place = f"cluster.groups.{groups.index(design.group.name)}." if groups else ""
    asked = [FEATURES[name].where.replace("cluster.groups.", place) for name in (one, other)]
    group = f"group {design.group.name}: " if groups else ""
    policy = f" ({design.args.policy})"
    said = [name + policy * (where == "engine.policy") for name, where in zip((one, other), asked, strict=True)]
    return ScenarioError(
        f"{group}{said[0]} and {said[1]} are not modelled together.",
        where=asked[0],
        remedy=f"Leave one of them out ({' or '.join(dict.fromkeys(asked))}).",
    )
