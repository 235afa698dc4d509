"""One engine of a scenario, built: model, GPU, memory plan, engine arguments, cost model, power, SLO."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from simulator.core.errors import ScenarioError
from simulator.cost.beside import beside
from simulator.cost.calibrated import Calibrated
from simulator.cost.calibration import Calibration, choose
from simulator.cost.contextual_sparsity import SparseCost
from simulator.cost.defaults import batch_defaults
from simulator.cost.finetuning import Finetuning, FinetuningCost
from simulator.cost.interface import StepCost
from simulator.cost.memory import MemoryPlan
from simulator.cost.other_kernels import OtherKernels
from simulator.cost.placement import Placed
from simulator.cost.power import ClockedCost, PowerModel, PowerProfile, PowerSetting, power_model
from simulator.cost.shared_prefix import check_sharing
from simulator.cost.speculative import Drafter, SpeculativeCost
from simulator.cost.step import OperatorCost
from simulator.hardware.gpu import Gpu, gpu
from simulator.kv.tier import TierPlan
from simulator.kv.tiers import TierSet
from simulator.metrics.slo import Slo, slo_preset
from simulator.model.architecture import Model
from simulator.model.catalogue import model
from simulator.model.compress import compressed
from simulator.model.config import load_config
from simulator.model.kv_compression import KvCompression
from simulator.replica.nodes import NodesPlan
from simulator.scenario.adapters import build_lora
from simulator.scenario.cluster import GroupSpec
from simulator.scenario.config import Scenario, SloSpec
from simulator.scenario.drafter import build_drafter
from simulator.scenario.engine import OF_TIERS, EngineSpec, ModelSpec
from simulator.scenario.hosted import build_offload
from simulator.scenario.kv import holding, without_prefixes
from simulator.scenario.load import at
from simulator.scenario.nodes import build_nodes
from simulator.scenario.placement import PlacementSpec
from simulator.scenario.prices import build_cost, plan_memory
from simulator.scenario.together import Design, check_together
from simulator.scheduling import POLICIES, EngineArgs, resolve
from simulator.scheduling.adapters import LoraPlan
from simulator.scheduling.holding import Holding


@dataclass(frozen=True)
class Setup:
    """One engine: what a replica is made of."""

    model: Model
    gpu: Gpu
    num_gpus: int
    memory: MemoryPlan
    num_gpu_blocks: int  # of the engine, see ``engine_blocks``
    args: EngineArgs
    cost: OperatorCost
    calibration: Calibration | None  # None: data-sheet roofline
    slo: Slo | None
    usd_per_hour: float | None  # of one replica; None: no price known
    power: PowerModel
    tiers: TierSet | None = None  # slower places for KV
    drafter: Drafter | None = None  # who drafts; None: nobody
    lora: LoraPlan | None = None  # adapters; None: they cost nothing
    job: Finetuning | None = None  # beside the requests
    nodes: NodesPlan | None = None  # that hold some layers each; None: all GPUs are alike
    holding: Holding | None = None  # KV blocks of a request where they are other than one per block_size tokens
    name: str = "replicas"  # of the group
    replicas: int = 1

    @property
    def notes(self) -> Mapping[str, str]:
        """What the calibration did not hold, and what stood in for it."""
        operators = self.cost.operators
        operators = operators.inner if isinstance(operators, OtherKernels) else operators
        return operators.notes if isinstance(operators, Calibrated) else {}


def build(scenario: Scenario, group: GroupSpec | None = None) -> Setup:
    """group: whose engine it is; None: the scenario's only one. Raises UserErrors whose ``where`` names the field of
    the scenario."""
    spec, engine = scenario.model, scenario.engine
    group = group or GroupSpec(name="replicas", replicas=scenario.cluster.replicas)
    served = build_model(spec)
    with at("hardware.gpu"):
        card = gpu(scenario.hardware.gpu)
        if scenario.cluster.network is not None:
            card = scenario.cluster.network.card(card)
    args = engine_args(scenario, served, card)
    with at("engine.policy"):
        args = resolve(args)
        POLICIES.get(args.policy)(args)  # it refuses options that it does not know
    check_together(Design(scenario, group, args, served))
    with at("hardware.calibration"):
        calibration = choose(scenario.hardware.calibration, card)
    if engine.placement is not None:
        return _on_nodes(scenario, engine.placement, args, served, card, calibration)
    with at("model"):
        offload = build_offload(scenario, served, card)
        memory = plan_memory(scenario, args, served, card, offload, group.replicas if group.lends else 1)
        cost = build_cost(scenario, args, served, card, calibration, offload)
        if args.shared_prefix_attention != "none":
            check_sharing(cost)
    drafter, lora, given_blocks = None, None, engine.num_gpu_blocks_override is not None
    if isinstance(cost, SparseCost):
        with at("model.contextual_sparsity"):
            memory = beside(memory, cost.predictor_bytes, 0.0, given_blocks=given_blocks)
    if engine.speculative_config is not None:
        with at("engine.speculative_config"):
            drafter = build_drafter(engine.speculative_config, cost)
            memory = beside(memory, drafter.weight_bytes, drafter.kv_bytes_per_token, given_blocks=given_blocks)
    if engine.finetuning is not None:
        with at("engine.finetuning"):
            memory = beside(memory, round(engine.finetuning.memory_bytes), 0.0, given_blocks=given_blocks)
    if engine.lora_config is not None:
        with at("engine.lora_config"):
            lora, memory = build_lora(engine.lora_config, cost, memory, given_blocks=given_blocks)
    power = build_power(scenario, args, card)
    each = scenario.hardware.price_per_gpu_hour
    each = card.price(scenario.hardware.pricing) if each is None else each
    num_gpu_blocks, block_size = engine_blocks(memory, args, cost.placed)
    return Setup(
        model=served,
        gpu=card,
        num_gpus=memory.num_gpus,
        memory=memory,
        num_gpu_blocks=num_gpu_blocks,
        args=replace(args, max_model_len=memory.max_model_len, block_size=block_size),
        cost=cost,
        calibration=calibration,
        slo=build_slo(scenario.slo),
        usd_per_hour=None if each is None else each * memory.num_gpus,
        power=power,
        tiers=build_tiers(engine, args, served, memory, card),
        drafter=drafter,
        lora=lora,
        job=None if engine.finetuning is None else engine.finetuning.build_job(),
        holding=holding(smaller_kv(spec), args, cost.placed),
    )


def _on_nodes(  # noqa: PLR0917 - of ``build``
    scenario: Scenario, placement: PlacementSpec, args: EngineArgs, served: Model, card: Gpu,
    calibration: Calibration | None,
) -> Setup:  # fmt: skip
    """An engine of nodes; ``gpu``, ``cost`` and ``power`` are those of the scenario's hardware."""
    args = replace(args, enable_prefix_caching=False)
    built = build_nodes(scenario, placement, args, served)
    kinds = dict.fromkeys(node.gpu for node in built.plan.nodes)
    return Setup(
        model=served,
        gpu=replace(card, name=" + ".join(kinds)),
        num_gpus=built.num_gpus,
        memory=built.tightest,
        num_gpu_blocks=built.kv_blocks,
        args=replace(args, max_model_len=built.tightest.max_model_len),
        cost=build_cost(scenario, args, served, card, calibration),
        calibration=calibration,
        slo=build_slo(scenario.slo),
        usd_per_hour=built.usd_per_hour,
        power=build_power(scenario, args, card),
        nodes=built.plan,
    )


def build_power(scenario: Scenario, args: EngineArgs, card: Gpu) -> PowerModel:
    """Power of one GPU under the scenario's cap and clock."""
    hardware, engine = scenario.hardware, scenario.engine
    with at("hardware.clock"):
        power_model(card, PowerSetting(clock=hardware.clock))
    with at("hardware.power_cap_w"):
        power = power_model(card, PowerSetting(hardware.power_cap_w, hardware.clock))
    # Rows count the tokens of all data-parallel or context-parallel ranks, each of which needs a ridge of its own.
    several = engine.data_parallel_size * engine.prefill_context_parallel_size
    queries = () if args.speculation is None else args.speculation.queries
    return replace(power, ridge_tokens=power.ridge_tokens * several, queries=queries)


def build_tiers(engine: EngineSpec, args: EngineArgs, served: Model, memory: MemoryPlan, card: Gpu) -> TierSet | None:
    """The tiers behind a replica's prefix cache. Raises ScenarioError where it has none to stand behind."""
    if not engine.kv_tiers:
        for name in OF_TIERS:
            if getattr(engine, name) != getattr(EngineSpec, name):
                remedy = "Give engine.kv_tiers, or leave it out."
                raise ScenarioError("there are no tiers to load from.", where=f"engine.{name}", remedy=remedy)
        return None
    if not args.enable_prefix_caching:
        remedy = "Set engine.enable_prefix_caching: true, or leave kv_tiers out."
        raise ScenarioError(
            "tiers keep what the prefix cache forgets, and it is off.", where="engine.kv_tiers", remedy=remedy
        )
    for index, tier in enumerate(engine.kv_tiers):
        if any(tier.name == before.name for before in engine.kv_tiers[:index]):
            where, remedy = f"engine.kv_tiers.{index}.name", "Give each tier a name of its own."
            raise ScenarioError(f"two tiers are called {tier.name!r}.", where=where, remedy=remedy)
    ranks = engine.tensor_parallel_size
    plans = tuple(
        TierPlan(
            tier.name,
            tier.capacity_bytes,
            tier.bandwidth if tier.bandwidth is not None else card.host_bandwidth * ranks,
            tier.latency_s,
            tier.write,
            tier.eviction,
            tier.shared,
        )
        for tier in engine.kv_tiers
    )
    per_token = memory.kv_bytes_per_token * ranks
    _check_asides(engine, args)
    if engine.kv_recompute_layers > served.num_layers:
        remedy = f"Give at most {served.num_layers}."
        message = f"the model has {served.num_layers} layers, not {engine.kv_recompute_layers}."
        raise ScenarioError(message, where="engine.kv_recompute_layers", remedy=remedy)
    for name in ("kv_recompute_fraction", "kv_recompute_layers"):
        if engine.kv_tier_match == "prefix" and getattr(engine, name) != getattr(EngineSpec, name):
            message = f"{name} is of chunks in new places; prefixes are found where they were computed."
            raise ScenarioError(message, where=f"engine.{name}", remedy="Leave it out, or use kv_tier_match: chunks.")
    if engine.kv_tier_match == "chunks" and any(plan.write != "through" for plan in plans):
        remedy = "Set 'write: through' for each of kv_tiers."
        message = "chunks are kept as they are computed, not as the prefix cache forgets them."
        raise ScenarioError(message, where="engine.kv_tier_match", remedy=remedy)
    return TierSet(
        plans,
        per_token,
        served.num_layers,
        engine.kv_tier_load,
        engine.kv_tier_load_if_faster,
        engine.kv_tier_match,
        engine.kv_recompute_fraction,
        engine.kv_recompute_layers,
        engine.kv_tier_prefetch,
    )


def _check_asides(engine: EngineSpec, args: EngineArgs) -> None:
    """Raises ScenarioError where tiers would not do beside the steps what they are asked to."""
    loads, window = engine.kv_tier_load == "async", engine.kv_tier_prefetch
    if not (loads or window):
        return
    where = "engine.kv_tier_load" if loads else "engine.kv_tier_prefetch"
    if not vars(POLICIES.get(args.policy)).get("asides"):
        able = ", ".join(name for name, policy in POLICIES.items() if vars(policy).get("asides"))
        message = f"policy {args.policy!r} does not let requests wait aside, nor tiers look along its queue."
        raise ScenarioError(message, where=where, remedy=f"Use policy {able}, or leave {where} out.")
    if engine.kv_tier_match == "chunks":
        message = "chunks are read layer by layer as they are computed again, not beside the steps."
        raise ScenarioError(message, where=where, remedy="Use kv_tier_match: prefix, or leave this out.")
    if window and args.scheduling_policy == "priority":
        message = "the head of a queue in order of priority is not known before it is admitted."
        raise ScenarioError(message, where=where, remedy="Use scheduling_policy: fcfs.")
    if window and len(engine.kv_tiers) == 1 and engine.kv_tiers[0].eviction != "lru":
        message = "one tier has nowhere to fetch from, and only 'eviction: lru' spares what the queue needs."
        raise ScenarioError(message, where="engine.kv_tier_prefetch", remedy="Add a tier, or leave it out.")


def draft_kv_bytes(setup: Setup) -> float:
    """Bytes per token that a draft model caches on all GPUs."""
    return 0.0 if setup.drafter is None else setup.drafter.kv_bytes_per_token * setup.cost.placed.tp


def step_cost(setup: Setup) -> StepCost:
    """What the steps of an engine take: its model's operators, its drafts or its fine-tuning job, its clock."""
    speculation = setup.args.speculation
    if setup.job is not None:
        return FinetuningCost(setup.cost, setup.job)
    if setup.power.setting == PowerSetting():
        if speculation is None or setup.drafter is None:
            return setup.cost
        return SpeculativeCost(setup.cost, setup.drafter, speculation.drafts, speculation.verified)
    return ClockedCost(setup.cost, setup.power)


def profile_of(setup: Setup) -> PowerProfile:
    """A replica as its controllers know it."""
    return PowerProfile(setup.cost, setup.power, setup.num_gpus, setup.args.max_num_seqs)


def work_per_s(setup: Setup) -> float:
    """Typical mixed batches per second, of all ranks: 32 decodes over 1,000 tokens each and 512 prompt tokens."""
    if setup.nodes is not None:
        return setup.nodes.flow_tokens_per_s / (32 + 512)
    windowed = 32 * min(1000, setup.cost.sliding_window or 1000)
    return setup.args.data_parallel_size / setup.cost.mixed(32, 32_000, windowed, [(512, 0)], 33)


def engine_blocks(memory: MemoryPlan, args: EngineArgs, placed: Placed) -> tuple[int, int]:
    """(KV blocks of the engine, whose pool has one block table per request; tokens in each).

    Models that mix kinds of attention have several, which draw on one pool; they are given the tokens vLLM reports
    as the size of their cache, and the null block. A block over ranks that share contexts holds as many times the
    tokens, as in vLLM; elastic instances bring blocks of their own.
    """
    blocks = memory.num_gpu_blocks if len(memory.layout.groups) == 1 else memory.kv_tokens // args.block_size + 1
    if POLICIES.get(args.policy).elastic:
        return (blocks - 1) * placed.pcp + 1, args.block_size * placed.dcp
    return blocks, args.block_size * placed.context_ranks


def engine_args(scenario: Scenario, served: Model, card: Gpu) -> EngineArgs:
    """The scenario's engine fields, with vLLM's defaults for this model and GPU where they are null."""
    spec, defaults = scenario.engine, batch_defaults(card, served)
    given = {f.name: getattr(spec, f.name) for f in fields(EngineArgs) if hasattr(spec, f.name)}
    if spec.speculative_config is not None:
        given["speculation"] = spec.speculative_config.build_args()
    if spec.max_num_seqs is None:
        given["max_num_seqs"] = defaults.max_num_seqs
    if spec.max_num_batched_tokens is None:
        given["max_num_batched_tokens"] = defaults.max_num_batched_tokens
    given["enable_prefix_caching"] = without_prefixes(smaller_kv(scenario.model), spec.enable_prefix_caching)
    return EngineArgs(**given)


def build_model(spec: ModelSpec) -> Model:
    if spec.config is not None:
        with at("model.config"):
            found = load_config(spec.config)
    else:
        with at("model.name"):
            found = model(str(spec.name))
    smaller = smaller_kv(spec)
    if smaller is None:
        return found
    with at("model.kv_compression"):
        return compressed(found, smaller)


def smaller_kv(spec: ModelSpec) -> KvCompression | None:
    return None if spec.kv_compression is None else spec.kv_compression.build()


def build_slo(spec: SloSpec | None) -> Slo | None:
    if spec is None:
        return None
    limits = {name: getattr(spec, name) for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s", "percentile")}
    given = {name: value for name, value in limits.items() if value is not None}
    if spec.preset is None:
        return Slo(**given)
    with at("slo.preset"):
        return replace(slo_preset(spec.preset), **given)
