"""A trace through a replica: builds the parts, runs the clock, returns records."""

from __future__ import annotations

from math import inf

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.arrivals import Arrivals, Progress
from simulator.cluster.clock import Clock
from simulator.cluster.replica import Replica
from simulator.core.errors import ScenarioError
from simulator.cost.interface import StepCost
from simulator.kv.pool import BlockPool
from simulator.kv.prefix import PrefixCache
from simulator.replica.engine import Engine, Observer
from simulator.replica.pipeline import PipelineEngine
from simulator.replica.recorder import Recorder
from simulator.replica.records import SimulationRecords
from simulator.scheduling import POLICIES, EngineArgs, EngineState, resolve
from traces.trace import Trace


def make_state(args: EngineArgs, num_gpu_blocks: int, cost: StepCost, trace: Trace, *, grows: bool) -> EngineState:
    """Queues and an empty KV cache. vLLM keeps one block of ``num_gpu_blocks`` back as the null block."""
    usable = num_gpu_blocks - 1
    if not args.enable_prefix_caching:
        return EngineState(args, BlockPool(usable, args.block_size), window=cost.sliding_window, grows=grows)
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
    state = EngineState(args, PrefixCache(usable, args.block_size, unit), window=cost.sliding_window, grows=grows)
    state.hittable = trace.prefix is not None
    return state


def _never_fits(trace: Trace, capacity: int, max_model_len: int) -> NDArray[np.bool_]:
    """Rows no engine could serve: longer than the model's limit, or than the whole KV cache.

    The last token needs no KV of its own. vLLM answers such requests with an error when they arrive.
    """
    longest = min(capacity + 1, max_model_len) if max_model_len else capacity + 1
    return np.asarray(trace.prompt_tokens + trace.output_tokens > longest)


class Simulation:
    """One replica, its engine and its requests, ready to run once; ``state`` and ``engine`` may be looked at after."""

    def __init__(
        self,
        trace: Trace,
        args: EngineArgs,
        cost: StepCost,
        num_gpu_blocks: int,
        *,
        max_model_len: int = 0,
        closed_loop_users: int | None = None,
        horizon_s: float | None = None,
        step_mode: bool = False,
        progress: Progress | None = None,
        observer: Observer | None = None,
        sequential: bool = False,
    ) -> None:
        """Arguments and errors of ``simulate``."""
        args = resolve(args)
        policy = POLICIES.get(args.policy)(args)
        self.trace, self.num_gpu_blocks, self.horizon_s = trace, num_gpu_blocks, horizon_s
        self.clock = Clock()
        self.state = state = make_state(args, num_gpu_blocks, cost, trace, grows=policy.grows)
        self.recorder = Recorder(len(trace))
        rejected = _never_fits(trace, state.pool.num_blocks * args.block_size, max_model_len or args.max_model_len)
        self.recorder.reject(rejected)
        self.arrivals = Arrivals(
            self.clock,
            trace,
            skip=rejected,
            users=closed_loop_users,
            block_size=args.block_size,
            use_prefix=bool(args.enable_prefix_caching),
            progress=progress,
        )
        on_finish = self.arrivals.finished if self.arrivals.has_feedback else None
        self.engine: Engine | PipelineEngine
        if args.pipeline_parallel_size > 1:
            self.engine = PipelineEngine(
                state,
                policy,
                cost,
                self.recorder,
                stages=args.pipeline_parallel_size,
                on_finish=on_finish,
                observer=observer,
            )
        else:
            self.engine = Engine(
                state,
                policy,
                cost,
                self.recorder,
                step_mode=step_mode,
                sequential=sequential,
                on_finish=on_finish,
                observer=observer,
            )

    def run(self) -> SimulationRecords:
        """Run the clock, return what happened."""
        trace, engine, horizon_s = self.trace, self.engine, self.horizon_s
        replica = Replica(self.clock, engine, watched=self.arrivals.has_feedback)
        self.arrivals.start(replica.receive)
        self.clock.run(until=horizon_s)
        stop = inf if horizon_s is None else horizon_s
        engine.run_until(stop)
        engine.close(stop)
        steps = self.recorder.steps()
        return SimulationRecords(
            requests=self.recorder.requests(
                self.arrivals.arrival, trace.prompt_tokens, trace.output_tokens, until=stop
            ),
            steps=steps,
            end=max(engine.busy_until, float(self.clock.now)) if horizon_s is None else horizon_s,
            num_gpu_blocks=(self.num_gpu_blocks,),
            block_size=self.state.block_size,
            num_events=self.clock.num_events,
            tokens_recomputed=sum(lane.tokens_recomputed for lane in self.state.lanes),
        )


def simulate(
    trace: Trace,
    args: EngineArgs,
    cost: StepCost,
    num_gpu_blocks: int,
    *,
    max_model_len: int = 0,
    closed_loop_users: int | None = None,
    horizon_s: float | None = None,
    step_mode: bool = False,
    progress: Progress | None = None,
    observer: Observer | None = None,
    sequential: bool = False,
) -> SimulationRecords:
    """Serve ``trace`` on one replica.

    num_gpu_blocks: KV blocks as vLLM counts them (its null block included).
    max_model_len: requests whose prompt and output exceed it are rejected (0: that of ``args``, where 0 is no limit).
    closed_loop_users: ignore arrival times; so many users send one request after the other.
    horizon_s: stop then, with requests in flight; None: until every request has ended.
    step_mode: plan every step on its own instead of in spans; same records.
    observer: watches every plan; sequential: see ``Engine``.
    Raises ScenarioError when trace and engine do not fit together, PolicyError when policy and arguments do not.
    """
    return Simulation(
        trace,
        args,
        cost,
        num_gpu_blocks,
        max_model_len=max_model_len,
        closed_loop_users=closed_loop_users,
        horizon_s=horizon_s,
        step_mode=step_mode,
        progress=progress,
        observer=observer,
        sequential=sequential,
    ).run()
