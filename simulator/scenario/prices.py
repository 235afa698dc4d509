"""Where a GPU's memory goes and what its steps cost, from the fields of one engine."""

from __future__ import annotations

from simulator.cost.calibrated import cost_model
from simulator.cost.calibration import Calibration
from simulator.cost.defaults import NEWEST, engine_overhead
from simulator.cost.hosted import Offload
from simulator.cost.memory import MemoryPlan, memory_plan
from simulator.cost.placement import Deployment
from simulator.cost.step import OperatorCost
from simulator.hardware.gpu import Gpu
from simulator.model.architecture import Model
from simulator.scenario.config import Scenario
from simulator.scheduling import EngineArgs


def build_cost(  # noqa: PLR0917 - what a price depends on
    scenario: Scenario, args: EngineArgs, served: Model, card: Gpu, calibration: Calibration | None,
    offload: Offload | None = None, layers: tuple[int, int] | None = None,
) -> OperatorCost:  # fmt: skip
    """Prices of one replica's steps. layers: the first one, and the one after the last; None: all."""
    spec, engine, speed = scenario.model, scenario.engine, scenario.hardware.kernel_speed
    return cost_model(
        served,
        card,
        calibration,
        Deployment(
            engine.tensor_parallel_size,
            engine.pipeline_parallel_size,
            engine.enable_expert_parallel,
            spec.dtype,
            spec.quantization,
            spec.kv_cache_dtype,
            engine.data_parallel_size,
            engine.all2all_backend,
            engine.expert_skew,
            engine.enable_eplb,
            engine.num_redundant_experts,
            engine.prefill_context_parallel_size,
            engine.decode_context_parallel_size,
            engine.context_parallel_layout,
            tensor_parallel_layout=engine.tensor_parallel_layout,
            experts=None if engine.experts is None else engine.experts.build(),
            offload=offload,
            layers=layers,
            sparsity=None if spec.contextual_sparsity is None else spec.contextual_sparsity.build(),
        ),
        overhead=engine_overhead(
            card,
            max_num_seqs=args.max_num_seqs,
            max_num_batched_tokens=args.max_num_batched_tokens,
            async_scheduling=bool(args.async_scheduling),
            enforce_eager=engine.enforce_eager,
            preset=engine.overhead or ("sglang" if args.policy == "sglang" else NEWEST),
            max_cudagraph_capture_size=engine.max_cudagraph_capture_size,
        ),
        speed=None if speed is None else speed.build(),
    )


def plan_memory(  # noqa: PLR0917 - what a plan depends on
    scenario: Scenario, args: EngineArgs, served: Model, card: Gpu, offload: Offload | None = None, lenders: int = 1,
    layers: tuple[int, int] | None = None,
) -> MemoryPlan:  # fmt: skip
    """Where the GPU's memory goes. layers: see ``build_cost``. Raises HardwareError when the model does not fit, with
    what would."""
    spec, engine = scenario.model, scenario.engine
    return memory_plan(
        served,
        card,
        tp=engine.tensor_parallel_size,
        pp=engine.pipeline_parallel_size,
        dtype=spec.dtype,
        quantization=spec.quantization,
        kv_cache_dtype=spec.kv_cache_dtype,
        gpu_memory_utilization=args.gpu_memory_utilization,
        max_num_batched_tokens=args.max_num_batched_tokens,
        max_num_seqs=args.max_num_seqs,
        block_size=args.block_size,
        max_model_len=args.max_model_len,
        num_gpu_blocks_override=args.num_gpu_blocks_override,
        enable_expert_parallel=engine.enable_expert_parallel,
        async_scheduling=bool(args.async_scheduling),
        enforce_eager=engine.enforce_eager,
        data_parallel_size=engine.data_parallel_size,
        num_redundant_experts=engine.num_redundant_experts,
        prefill_context_parallel_size=engine.prefill_context_parallel_size,
        decode_context_parallel_size=engine.decode_context_parallel_size,
        tensor_parallel_layout=engine.tensor_parallel_layout,
        cached_experts=None if engine.experts is None else engine.experts.cached_experts,
        offload=offload,
        kv_lenders=lenders,
        layers=layers,
    )
