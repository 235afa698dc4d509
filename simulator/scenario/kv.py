"""A KV cache made smaller: its fields, and what of a request's blocks they change."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Annotated

from pydantic import Field

from simulator.cluster.plan import ClusterPlan
from simulator.core.errors import ScenarioError
from simulator.cost.placement import Placed
from simulator.model.formats import kv_element_bytes
from simulator.model.kv_compression import KvCompression, extra_blocks, kv_preset
from simulator.scenario.spec import Name, NonNegative, NonNegativeNumber, spec
from simulator.scheduling import POLICIES, EngineArgs
from simulator.scheduling.holding import Holding

Share = Annotated[float, Field(strict=True, gt=0, le=1, allow_inf_nan=False)]


@spec
class KvCompressionSpec:
    """A smaller KV cache. Plain text is a preset's name; fields given beside it replace its own. What it costs in
    quality is not simulated."""

    preset: Name | None = None
    """kivi-2bit, gear-4bit, minicache, h2o, streaming-llm, keyformer, infinigen, ...: see docs/kv-cache.md."""
    bits: Annotated[float, Field(strict=True, gt=0, le=16, allow_inf_nan=False)] | None = None
    """Bits of an element, scales apart; null: as `kv_cache_dtype` says."""
    group_size: NonNegative | None = None
    """Elements that share a 16-bit scale and zero point; 0: none do."""
    extra: NonNegativeNumber | None = None
    """Bytes stored beside (outliers, low-rank parts), as a share of the cache in 16 bits."""
    residual_tokens: NonNegative | None = None
    """Newest tokens of a request that stay in 16 bits."""
    keep: Share | None = None
    """Share of its context that a request keeps."""
    keep_tokens: Annotated[int, Field(strict=True, ge=2)] | None = None
    """Most tokens that a request keeps and that a query sees, sinks included."""
    read: Share | None = None
    """Share of what is kept that a decode reads."""
    index: NonNegativeNumber | None = None
    """Bytes beside that a decode reads to find out which, as a share of the cache in 16 bits."""
    stored_layers: Share | None = None
    """Share of the layers that have KV of their own; the others use a neighbour's."""
    dequant_ops: NonNegativeNumber | None = None
    """Instructions of the ordinary cores per element that a decode reads."""
    kernels: NonNegativeNumber | None = None
    """Launches per layer and step beside attention; one every k steps counts as 1/k."""
    rewrite: Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)] | None = None
    """Share of the cache that every step copies: 1 where tensors grow by joining, as in Hugging Face's library."""

    def build(self) -> KvCompression:
        base = KvCompression() if self.preset is None else kv_preset(self.preset)
        names = [f.name for f in fields(self) if f.name != "preset"]
        return replace(base, **{name: value for name in names if (value := getattr(self, name)) is not None})


def without_prefixes(kv: KvCompression | None, given: bool | None) -> bool | None:  # noqa: FBT001 - a field's value
    """``enable_prefix_caching`` of an engine with such a cache. Raises ScenarioError where it cannot be on."""
    if kv is None or not (kv.drops_tokens or kv.residual_tokens):
        return given
    if given:
        raise ScenarioError(
            "requests cannot share blocks of which each keeps other tokens, or some in 16 bits.",
            where="engine.enable_prefix_caching",
            remedy="Set it to false or leave it out, or take a kv_compression without keep and residual_tokens.",
        )
    return False


def holding(kv: KvCompression | None, args: EngineArgs, placed: Placed) -> Holding | None:
    """What requests hold of blocks, where it is not one per ``block_size`` tokens. Raises ScenarioError where the
    engine counts them otherwise."""
    if kv is None or (kv.keep_tokens is None and not kv.residual_tokens):
        return None
    if not POLICIES.get(args.policy).holds or args.data_parallel_size > 1:
        names = ", ".join(name for name in POLICIES.names() if POLICIES.get(name).holds)
        raise ScenarioError(
            f"keep_tokens and residual_tokens change how many blocks a request holds, which policy {args.policy!r} "
            f"(data_parallel_size {args.data_parallel_size}) counts by itself.",
            where="model.kv_compression",
            remedy=f"Use one of {names} and data_parallel_size: 1.",
        )
    return Holding(kv.keep_tokens, extra_blocks(kv, kv_element_bytes(placed.kv_dtype)[0], args.block_size))


def check_pauses(plan: ClusterPlan) -> None:
    """Raises ScenarioError when a conversation's next turn would not find the KV that policy infercept has kept."""
    if all(group.args.policy != "infercept" for group in plan.groups):
        return
    several = plan.life is not None or sum(group.count for group in plan.groups) > 1
    router = plan.router
    together = router.policy == "session-affinity" and router.options.get("load_factor") == 0
    if plan.moves_kv or (several and not together):
        raise ScenarioError(
            "policy infercept keeps the KV of a conversation on the replica that served its last turn.",
            where="cluster.router",
            remedy="Use router session-affinity with load_factor: 0; no disaggregation, migration or kv_replication.",
        )
