"""From a group of the plan to an engine with queues and an empty KV cache."""

from __future__ import annotations

from typing import cast

from simulator.cluster.plan import Group
from simulator.core.errors import ScenarioError
from simulator.core.random import streams
from simulator.cost.remote_attention import RemoteAttention
from simulator.cost.shared_prefix import SharedPrefixCost
from simulator.cost.step import OperatorCost
from simulator.kv.pool import BlockPool
from simulator.kv.prefix import PrefixCache
from simulator.replica.adapting import AdaptedCost
from simulator.replica.aside import AsideEngine
from simulator.replica.elastic import ElasticEngine
from simulator.replica.engine import Engine, Observer
from simulator.replica.lending import LendingEngine, Loans
from simulator.replica.moves import AnyEngine
from simulator.replica.nodes import NodesEngine
from simulator.replica.pipeline import PipelineEngine
from simulator.replica.recorder import Recorder
from simulator.replica.shared import Processor, SharedEngine
from simulator.replica.steps import OnFinish
from simulator.replica.wave import WaveEngine
from simulator.scheduling import POLICIES, EngineState
from simulator.scheduling.adapters import Adapters, AdapterState, LoraPlan, adapting
from simulator.scheduling.args import Speculation
from simulator.scheduling.elastic import ElasticPolicy
from simulator.scheduling.holding import HoldingState
from simulator.scheduling.parallel_chunks import Bounds, State, side_by_side
from simulator.scheduling.shared_prefix import SharingState
from simulator.scheduling.speculation import Acceptance, SpeculativeState, speculating
from traces.trace import Trace


def build_engine(
    group: Group,
    trace: Trace,
    recorder: Recorder,
    *,
    on_finish: OnFinish | None,
    observer: Observer | None,
    step_mode: bool,
    sequential: bool,
    processor: Processor | None,
    loans: Loans | None = None,
    seed: int = 0,
) -> AnyEngine:
    """The engine of a replica: on its own GPUs, on shared ones (``processor``), of data-parallel ranks, of a pipeline,
    of unlike nodes, with KV memory that it shares (``loans``).

    step_mode, sequential, observer: see ``Engine``. seed: of what is drawn per request.
    """
    if group.nodes is not None:
        state = make_state(group, trace, grows=True)
        return NodesEngine(state, group.cost, recorder, plan=group.nodes, on_finish=on_finish, observer=observer)
    if group.lora is not None and trace.adapter is not None:
        return _adapting_engine(group, trace, recorder, group.lora, step_mode, on_finish, observer)
    if group.args.speculation is not None:
        return _speculating_engine(group, trace, recorder, group.args.speculation, seed, on_finish, observer)
    args, cost = group.args, group.cost
    ranks = range(args.data_parallel_size)
    policies = [POLICIES.get(args.policy)(args) for _ in ranks]
    states = [make_state(group, trace, grows=policies[0].grows) for _ in ranks]
    one = states[0], policies[0], cost, recorder
    if policies[0].elastic:
        elastic, kernels = cast("ElasticPolicy", policies[0]), cast("OperatorCost", cost)  # of an elastic policy
        return ElasticEngine(states[0], elastic, kernels, recorder, on_finish=on_finish, observer=observer)
    if loans is not None:
        state = EngineState(args, loans.pool)
        attention = RemoteAttention(cast("OperatorCost", cost), group.count)  # of replicas that lend
        return LendingEngine(
            state, policies[0], attention, recorder, loans=loans, on_finish=on_finish, observer=observer
        )
    if args.pipeline_parallel_size > 1:
        stages = processor.stages if processor is not None else [0.0] * args.pipeline_parallel_size
        return PipelineEngine(*one, stages=stages, on_finish=on_finish, observer=observer)
    if processor is not None:
        return SharedEngine(*one, processor=processor, on_finish=on_finish, observer=observer)
    if len(ranks) > 1 or args.enable_eplb:
        every = args.eplb_step_interval if args.enable_eplb else None
        return WaveEngine(
            states,
            policies,
            cost,
            recorder,
            step_mode=step_mode,
            rebalance_interval=every,
            on_finish=on_finish,
            observer=observer,
        )
    if args.shared_prefix_attention != "none":
        state = SharingState(args, states[0].pool, window=cost.sliding_window)
        state.hittable = states[0].hittable
        shares = SharedPrefixCost(cast("OperatorCost", cost), state.shared)  # of engines of operators alone
        one = state, policies[0], shares, recorder
    plain = AsideEngine if group.tiers is not None and group.tiers.asides else Engine
    return plain(*one, step_mode=step_mode, sequential=sequential, on_finish=on_finish, observer=observer)


def _speculating_engine(  # noqa: PLR0917 - of ``build_engine``
    group: Group, trace: Trace, recorder: Recorder, speculation: Speculation, seed: int, on_finish: OnFinish | None,
    observer: Observer | None,
) -> Engine:  # fmt: skip
    """Steps are planned one by one: what they accept differs, and so do their prices."""
    args, cost = group.args, group.cost
    key = int(streams(seed).stream("speculation").integers(1 << 63))
    acceptance = Acceptance(speculation, key)
    policy = speculating(POLICIES.get(args.policy))(args)
    plain = make_state(group, trace, grows=True)
    state = SpeculativeState(args, plain.pool, acceptance, recorder.bursts, window=cost.sliding_window)
    state.hittable = plain.hittable
    return Engine(state, policy, cost, recorder, step_mode=True, on_finish=on_finish, observer=observer)


def _adapting_engine(  # noqa: PLR0917 - of ``build_engine``
    group: Group, trace: Trace, recorder: Recorder, lora: LoraPlan, step_mode: bool, on_finish: OnFinish | None,
    observer: Observer | None,
) -> Engine:  # fmt: skip
    args = group.args
    if args.policy != "vllm" or args.scheduling_policy != "fcfs":
        raise ScenarioError("adapters take engine policy vllm, first come first served.", where="engine.policy")
    plain = make_state(group, trace, grows=True)
    assert trace.adapter is not None
    adapters = Adapters(lora, trace.adapter.codes.tolist(), plain.pool)
    state = AdapterState(args, plain.pool, adapters, window=group.cost.sliding_window)
    state.hittable = plain.hittable
    policy, cost = adapting(POLICIES.get(args.policy))(args), AdaptedCost(group.cost, adapters.batch)
    engine = Engine(state, policy, cost, recorder, step_mode=step_mode, on_finish=on_finish, observer=observer)
    engine.eager |= lora.merge is not None  # who has ended counts when an adapter is chosen
    return engine


def make_state(group: Group, trace: Trace, *, grows: bool) -> EngineState:
    """Queues and an empty KV cache. vLLM keeps one block of ``num_gpu_blocks`` back as the null block."""
    args, cost, usable = group.args, group.cost, group.num_gpu_blocks - 1
    if group.holding is not None:
        pool = BlockPool(usable, args.block_size)
        return _kind(HoldingState, group, trace)(args, pool, group.holding, window=cost.sliding_window, grows=grows)
    if not args.enable_prefix_caching:
        pool = BlockPool(usable, args.block_size)
        return _kind(EngineState, group, trace)(args, pool, window=cost.sliding_window, grows=grows)
    unit = 1
    if trace.prefix is not None:
        tokens = trace.prefix.block_tokens
        if max(tokens, args.block_size) % min(tokens, args.block_size):
            raise ScenarioError(
                f"block_size {args.block_size} does not divide the trace's prefix blocks of {tokens} tokens.",
                where=trace.source,
                remedy="Choose a block_size that divides them (or a multiple), or turn enable_prefix_caching off.",
            )
        unit = max(tokens // args.block_size, 1)
    cache = PrefixCache(usable, args.block_size, unit)
    state = _kind(EngineState, group, trace)(args, cache, window=cost.sliding_window, grows=grows)
    state.hittable = trace.prefix is not None
    return state


def _kind(state: type[State], group: Group, trace: Trace) -> type[State]:
    """The class of the state, where chunks of prompts are computed side by side."""
    if not group.parallel_chunks:
        return state
    if trace.chunks is None:
        remedy = "Use a trace that does, such as RAGPulse's or synthetic documents, or leave parallel_chunks out."
        raise ScenarioError("the requests name no chunks to encode side by side.", where=trace.source, remedy=remedy)
    return side_by_side(state, Bounds(trace.chunks.offsets, trace.chunks.tokens))


def ids_block_size(trace: Trace, groups: tuple[Group, ...]) -> int:
    """Block size that a request's ids are made for; where a trace's blocks are larger, any engine's will do."""
    caching = {group.args.block_size for group in groups if group.args.enable_prefix_caching}
    if trace.prefix is not None and len(caching) > 1 and max(caching) > trace.prefix.block_tokens:
        raise ScenarioError(
            f"engines with blocks of {sorted(caching)} tokens cannot share a trace whose prefix blocks have "
            f"{trace.prefix.block_tokens} tokens.",
            where=trace.source,
            remedy="Give every engine the same block_size, or one that divides the trace's blocks.",
        )
    return max(caching, default=groups[0].args.block_size)
