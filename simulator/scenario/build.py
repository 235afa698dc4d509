"""What a scenario names, built: model, GPU, memory plan, engine arguments, cost model, SLO, trace."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from simulator.core.random import streams
from simulator.cost.interface import StepCost
from simulator.cost.defaults import batch_defaults, engine_overhead
from simulator.cost.memory import MemoryPlan, memory_plan
from simulator.cost.placement import Deployment
from simulator.cost.roofline import RooflineCost
from simulator.hardware.gpu import Gpu, gpu
from simulator.metrics.slo import Slo, slo_preset
from simulator.model.architecture import Model
from simulator.model.catalogue import model
from simulator.model.config import load_config
from simulator.scenario.config import ModelSpec, Scenario, SloSpec
from simulator.scenario.load import at
from simulator.scenario.workload import Transform, Workload
from simulator.scheduling import POLICIES, EngineArgs
from traces import transforms
from traces.formats import read_trace
from traces.generate import Generators, generate, synthesize
from traces.trace import Trace


@dataclass(frozen=True)
class Setup:
    """Everything of a run but the requests."""

    model: Model
    gpu: Gpu
    num_gpus: int
    memory: MemoryPlan
    args: EngineArgs
    cost: StepCost
    slo: Slo | None
    usd_per_hour: float | None  # of all GPUs together; None: no price known


def build(scenario: Scenario) -> Setup:
    """Raises UserErrors whose ``where`` names the field of the scenario."""
    served = build_model(scenario.model)
    with at("hardware.gpu"):
        card = gpu(scenario.hardware.gpu)
    args = engine_args(scenario, served, card)
    with at("engine.policy"):
        POLICIES.get(args.policy)
    spec, engine = scenario.model, scenario.engine
    deployment = Deployment(
        tensor_parallel_size=engine.tensor_parallel_size,
        pipeline_parallel_size=engine.pipeline_parallel_size,
        enable_expert_parallel=engine.enable_expert_parallel,
        dtype=spec.dtype,
        quantization=spec.quantization,
        kv_cache_dtype=spec.kv_cache_dtype,
    )
    overhead = engine_overhead(
        card,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        async_scheduling=args.async_scheduling,
        enforce_eager=engine.enforce_eager,
    )
    with at("model"):
        memory = memory_plan(served, card, deployment, args)
        cost = RooflineCost(served, card, deployment, overhead)
    num_gpus = engine.tensor_parallel_size * engine.pipeline_parallel_size
    each = scenario.hardware.price_per_gpu_hour
    each = card.price_per_hour if each is None else each
    return Setup(
        model=served,
        gpu=card,
        num_gpus=num_gpus,
        memory=memory,
        args=replace(args, max_model_len=memory.max_model_len),
        cost=cost,
        slo=build_slo(scenario.slo),
        usd_per_hour=None if each is None else each * num_gpus,
    )


def build_model(spec: ModelSpec) -> Model:
    if spec.config is not None:
        with at("model.config"):
            return load_config(spec.config)
    with at("model.name"):
        return model(str(spec.name))


def engine_args(scenario: Scenario, served: Model, card: Gpu) -> EngineArgs:
    """The scenario's engine fields, with vLLM's defaults for this model and GPU where they are null."""
    spec, defaults = scenario.engine, batch_defaults(card, served)
    given = {f.name: getattr(spec, f.name) for f in fields(EngineArgs)}
    if spec.max_num_seqs is None:
        given["max_num_seqs"] = defaults.max_num_seqs
    if spec.max_num_batched_tokens is None:
        given["max_num_batched_tokens"] = defaults.max_num_batched_tokens
    return EngineArgs(**given)


def build_slo(spec: SloSpec | None) -> Slo | None:
    if spec is None:
        return None
    limits = {name: getattr(spec, name) for name in ("ttft_s", "tpot_s", "itl_s", "e2e_s", "percentile")}
    given = {name: value for name, value in limits.items() if value is not None}
    if spec.preset is None:
        return Slo(**given)
    with at("slo.preset"):
        return replace(slo_preset(spec.preset), **given)


def make_trace(workload: Workload, seed: int) -> Trace:
    """The requests of a scenario. Raises UserErrors whose ``where`` names the field."""
    trace = _source(workload, seed)
    for index, step in enumerate(workload.transforms):
        with at(f"workload.transforms.{index}"):
            trace = _transformed(trace, step, seed, index)
    return trace


def _source(workload: Workload, seed: int) -> Trace:
    generators = Generators.of(seed)
    if workload.trace is not None:
        with at("workload.trace"):
            return read_trace(workload.trace.path, workload.trace.format, strict=workload.trace.strict)
    if workload.preset is not None:
        preset = workload.preset
        with at("workload.preset"):
            return generate(
                preset.name,
                num_requests=preset.num_requests,
                rate=preset.rate,
                steady=preset.steady,
                generators=generators,
            )
    mix = workload.synthetic
    assert mix is not None
    with at("workload.synthetic"):
        return synthesize(
            arrivals=mix.arrivals.build(),
            lengths=mix.lengths.build(),
            sessions=mix.sessions.build() if mix.sessions else None,
            num_requests=mix.num_requests,
            generators=generators,
        )
