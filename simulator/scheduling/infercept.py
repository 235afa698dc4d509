"""Requests that stop for a tool and come back: what becomes of their KV meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from simulator.core.errors import PolicyError
from simulator.core.options import Range, read_options
from simulator.kv.prefix import NO_HIT
from simulator.scheduling.args import EngineArgs
from simulator.scheduling.ordered import RankedQueue
from simulator.scheduling.policy import POLICIES
from simulator.scheduling.request import Request
from simulator.scheduling.state import EngineState
from simulator.scheduling.step import DECODE, Step
from simulator.scheduling.vllm import Shares, Vllm


@dataclass(frozen=True)
class InterceptOptions:
    """interception: what a pause does with a request's KV. order: of the waiting queue: by the arrival of a
    conversation's first turn (original), or of each turn. prefill_tokens_per_s: what recomputing is taken to cost
    (min-waste; the paper profiles it). swap_space_gib: host memory for KV, per GPU. pcie_gb_s: GB/s over the link, one
    direction. kv_bytes_per_token: of all layers, on one GPU; needed to swap."""

    interception: Literal["discard", "preserve", "swap", "min-waste"] = "min-waste"
    order: Literal["original", "arrival"] = "original"
    prefill_tokens_per_s: Annotated[float, Range(1e-3)] = 10_000.0
    swap_space_gib: Annotated[float, Range(0)] = 64.0
    pcie_gb_s: Annotated[float, Range(1e-3)] = 25.0
    kv_bytes_per_token: Annotated[int, Range(0)] = 0


@dataclass(slots=True)
class Pause:
    """The KV of a conversation between two of its turns. request: the turn that has ended."""

    request: Request
    tokens: int
    blocks: int
    swapped: bool = False
    ready: float = -1.0  # s, when its copy back is done; -1: not begun


@POLICIES.register("infercept")
class InferCept(Vllm):
    """vLLM's engine for augmented models: turns that wait for a tool, with their KV kept, moved or thrown away.

    A turn of a conversation with a think time is a stretch of generation, the think time what its tool takes, and the
    next turn's prompt what has been said so far and what the tool returned.

    Decides: at each pause, ``discard`` frees the KV (the next turn computes all of its prompt), ``preserve`` leaves it
    in GPU memory, ``swap`` copies it to the host and back while the engine waits, ``min-waste`` takes what wastes the
    least memory x time: preserving ``pause x context``, discarding ``recompute x (context / 2 + context of the
    others)``, or a swap behind the computation, which wastes nothing but must find the link idle and be shorter than
    the pause. Out of blocks, preserved KV goes before anybody who runs is preempted.
    Why it helps: contexts of hundreds of tokens are not computed again after every call, and long calls do not hold
    memory that others could use.
    Limits: durations of calls are known (the paper estimates them by the time since the call); a choice is not taken
    back later, but for want of blocks. No prefix caching. Turns must come to the replica that served the one before.
    Reference: Abhyankar et al., InferCept, ICML 2024 (arXiv:2402.01869), section 4.
    """

    prefix_caching = False
    holds = False
    keeps = True
    pipelines = False
    speculates = False
    unused = frozenset({"scheduling_policy"})

    def __init__(self, args: EngineArgs) -> None:
        super().__init__(replace(args, options={}))
        options = read_options(InterceptOptions, args.policy, args.options)
        self.options = options
        swaps = options.interception in {"swap", "min-waste"}
        if swaps and not options.kv_bytes_per_token:
            remedy = "Give the KV bytes of a token on one GPU, such as 131072 for Llama-3.1-8B in 16 bit."
            message = f"interception {options.interception!r} needs the option kv_bytes_per_token."
            raise PolicyError(f"engine policy {args.policy!r}: {message}", remedy=remedy)
        if args.enable_prefix_caching:
            remedy = "Leave enable_prefix_caching out, or use policy vllm, whose cache keeps what is not evicted."
            raise PolicyError(f"engine policy {args.policy!r} keeps KV without a prefix cache.", remedy=remedy)
        if args.data_parallel_size > 1:
            remedy = "Use replicas, and a router that keeps conversations together."
            raise PolicyError(f"engine policy {args.policy!r} does not plan for data-parallel ranks.", remedy=remedy)
        self.token_copy_s = options.kv_bytes_per_token / (options.pcie_gb_s * 1e9)
        self.host_tokens = options.swap_space_gib * (1 << 30) / options.kv_bytes_per_token if swaps else 0.0

    def prepare(self, state: EngineState) -> None:
        self.first: dict[int, float] = {}  # s, arrival of each conversation's first turn
        self.pauses: dict[int, Pause] = {}  # by conversation
        self.coming: list[Request] = []  # their KV is copied back, in order of arrival
        self.link_until = 0.0  # s
        state.keeps = True
        if self.options.order == "original":
            state.waiting = RankedQueue(lambda request: (self.first.get(request.session, request.arrival),))

    def arrive(self, state: EngineState, request: Request) -> bool:
        if request.session >= 0:
            self.first.setdefault(request.session, request.arrival)
            pause = self.pauses.get(request.session)
            if pause is not None and pause.swapped:
                self.coming.append(request)
                return True
        return super().arrive(state, request)

    def schedule(self, state: EngineState) -> Step | None:
        stall = self._intercept(state) + self._bring_back(state)
        step = super().schedule(state)
        while step is None and state.waiting and self._drop(state):
            step = super().schedule(state)  # nobody ran, and preserved KV was in the way
        if not stall and self.coming:
            if step is None:  # nothing to do until a copy is there
                stall = min(self.pauses[request.session].ready for request in self.coming) - state.now
            elif step is DECODE:
                return Step(decodes=True)  # a copy may be there after any step
        if stall:
            step = Step(decodes=state.num_decodes > 0) if step is None or step is DECODE else step
            step.extra_s += stall
        return step

    # -- pauses ------------------------------------------------------------------------------------------------

    def _intercept(self, state: EngineState) -> float:
        """Decide for those that have just ended; returns how long the engine waits for copies, s."""
        stall = 0.0
        if len(state.kept) > len(self.pauses) - self._swapped:
            known = {pause.request for pause in self.pauses.values()}
            for request in [kept for kept in state.kept if kept not in known]:
                stall += self._pause(state, request)
        return stall

    @property
    def _swapped(self) -> int:
        return sum(pause.swapped for pause in self.pauses.values())

    def _pause(self, state: EngineState, request: Request) -> float:
        tokens = request.computed
        pause = Pause(request, tokens, state.blocks_of(tokens))
        ends = request.pause_s < 0 or request.session in self.pauses  # or another turn of it is in a pause already
        choice = "discard" if ends else self._choose(state, request)
        if request.pause_s < 0:
            self.first.pop(request.session, None)
        if choice == "preserve":
            self.pauses[request.session] = pause
            return 0.0
        state.let_go(request)
        if choice == "discard":
            return 0.0
        pause.swapped = True
        self.pauses[request.session] = pause
        self.host_tokens -= tokens
        copy_s = tokens * self.token_copy_s
        if self.options.interception == "swap":
            return copy_s
        self.link_until = state.now + copy_s
        return 0.0

    def _choose(self, state: EngineState, request: Request) -> str:
        kind, tokens, pause_s = self.options.interception, request.computed, request.pause_s
        copy_s = tokens * self.token_copy_s
        if kind == "swap":
            return "swap" if tokens <= self.host_tokens else "discard"
        if kind != "min-waste":
            return kind
        if self.link_until <= state.now and tokens <= self.host_tokens and pause_s > 2 * copy_s:
            return "swap"
        recompute_s = tokens / self.options.prefill_tokens_per_s
        others = state.computed_sum
        return "preserve" if pause_s * tokens <= recompute_s * (tokens / 2 + others) else "discard"

    def _drop(self, state: EngineState) -> bool:
        """Throw away the largest preserved KV; False: there is none."""
        held = [(p.tokens, session) for session, p in self.pauses.items() if not p.swapped]
        if not held:
            return False
        _, session = max(held)
        state.let_go(self.pauses.pop(session).request)
        return True

    def _bring_back(self, state: EngineState) -> float:
        """Turns whose KV is in host memory: queued when it is back; returns how long the engine waits for it, s."""
        stall, still = 0.0, []
        for request in self.coming:
            pause = self.pauses[request.session]
            if pause.ready < 0:
                copy_s = pause.tokens * self.token_copy_s
                self.host_tokens += pause.tokens
                if self.options.interception == "swap":
                    stall += copy_s
                    pause.ready = state.now
                else:
                    self.link_until = pause.ready = max(self.link_until, state.now) + copy_s
            if pause.ready <= state.now:
                state.waiting.append(request)
            else:
                still.append(request)
        self.coming = still
        return stall

    # -- admission -----------------------------------------------------------------------------------------------

    def _admit(self, state: EngineState, step: Step, budget: int, threshold: int) -> None:
        """As vLLM's, with what a pause has kept already computed."""
        waiting, pool = state.waiting, state.pool
        while budget > 0 and waiting and len(state.running) < self.max_num_seqs:
            request = waiting[0]
            pause = self.pauses.get(request.session) if request.session >= 0 else None
            computed = 0 if pause is None else min(pause.tokens, request.target - 1)
            owned = 0 if pause is None or pause.swapped else pause.blocks
            tokens = min(request.target - computed, threshold or request.target)
            if tokens > budget and not self.chunked:
                return
            tokens = min(tokens, budget)
            need = state.blocks_of(request.target if self.reserve_prompt else computed + tokens) - owned
            if self.watermark and state.running:
                need += int(self.watermark * (pool.num_blocks + 1))
            if need > pool.free:
                return
            waiting.popleft()
            if pause is not None:
                del self.pauses[request.session]
                if owned:
                    state.let_go(pause.request)
                pool.take(state.blocks_of(computed))
            state.admit(request, NO_HIT, step)
            request.computed = request.cached_tokens = computed
            state.chunk(request, tokens, step)
            budget -= tokens

    def _make_room(self, state: EngineState, step: Step, request: Request, blocks: int, given: Shares) -> int:
        while state.pool.free < blocks and self._drop(state):
            pass
        return super()._make_room(state, step, request, blocks, given)
