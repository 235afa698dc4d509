"""The scheduler of vLLM V1, decision for decision (``v1/core/sched/scheduler.py`` of 0.33)."""

from __future__ import annotations

from simulator.core.options import NoOptions, read_options
from simulator.kv.prefix import NO_HIT
from simulator.native.attributes import mypyc_attr
from simulator.scheduling.args import EngineArgs
from simulator.scheduling.paging import sequence_free
from simulator.scheduling.policy import POLICIES, Policy
from simulator.scheduling.queues import PriorityQueue
from simulator.scheduling.request import Request
from simulator.scheduling.state import EngineState
from simulator.scheduling.step import DECODE, Step

Shares = dict[Request, tuple[int, int]]  # tokens and blocks given to running requests in this step


@mypyc_attr(allow_interpreted_subclasses=True)
class Vllm(Policy):
    """vLLM V1: one token budget per step for running requests first, then waiting ones; chunked prefill.

    Decides: each step gives every running request its next tokens in order of admission (one if it decodes, the rest of
    its prompt if not) until ``max_num_batched_tokens`` is spent, then admits waiting requests while sequences, budget
    and KV blocks for their whole prompt last. Out of blocks, the last admitted request (or the one of lowest priority)
    is preempted and recomputed later.
    Why it helps: prompts and decodes share steps, so neither starves the other, and memory is used until it is full.
    Limits: a long prompt still slows the decodes that share its steps; recomputation is wasted work under pressure.
    Reference: Kwon et al., SOSP 2023 (10.1145/3600006.3613165); behaviour checked against vLLM 0.33's own logs.
    """

    async_by_default = True
    pipelines = True
    speculates = True
    holds = True
    asides = True

    def __init__(self, args: EngineArgs) -> None:
        read_options(NoOptions, args.policy, args.options)
        self.max_num_seqs = args.max_num_seqs
        self.budget = args.max_num_batched_tokens
        self.threshold = args.long_prefill_token_threshold
        self.chunked = args.enable_chunked_prefill
        self.reserve_prompt = args.scheduler_reserve_full_isl
        self.watermark = args.watermark
        self.remembers = args.enable_prefix_caching and self.reserve_prompt and not self.watermark
        self.by_priority = args.scheduling_policy == "priority"

    def prepare(self, state: EngineState) -> None:
        if self.by_priority:
            state.waiting = PriorityQueue()

    def arrive(self, state: EngineState, request: Request) -> bool:
        waiting = state.waiting
        waiting.append(request)
        # Behind a head that does not fit, or without a free sequence, an arrival only joins the queue.
        return waiting[0] is request and len(state.running) - len(state.releasing) < self.max_num_seqs

    def schedule(self, state: EngineState) -> Step | None:
        decodes = state.num_decodes
        prefilling = state.prefilling
        waiting = state.waiting
        ahead = state.phase[state.token_steps % state.block_size]
        pool = state.pool
        budget = self.budget - decodes
        if budget < 0 or ahead > pool.free:
            return self._walk(state)
        if not prefilling and not (waiting and budget):
            return DECODE if decodes else None
        step = Step(decodes=decodes > 0)
        threshold = self._threshold(state) if self.threshold else 0
        if prefilling:
            chunks = self._chunks(state, budget, threshold)
            if chunks is None:
                return self._walk(state)
            for request, tokens in chunks:
                state.chunk(request, tokens, step)
                budget -= tokens
        if waiting and budget:
            if ahead:  # running requests take theirs first: it may evict what a waiting one would hit
                pool.take(ahead)
            self._admit(state, step, budget, threshold)
            pool.free += ahead  # taken again as the step is applied
            looks = state.tiers is not None and not self.reserve_prompt
            if looks and decodes and waiting and sequence_free(state, self.max_num_seqs):
                return step  # what the head needs depends on what it finds in tiers, which changes with time
        if step.chunks:
            return step
        return DECODE if decodes else None

    def _threshold(self, state: EngineState) -> int:
        """``long_prefill_token_threshold``, unless there is nobody else to starve."""
        return self.threshold if len(state.running) + len(state.waiting) > 1 else 0

    def _chunks(self, state: EngineState, budget: int, threshold: int) -> list[tuple[Request, int]] | None:
        """Chunks of the running prompts when everybody gets a turn: blocks suffice and no decode comes after a prompt
        that spends the budget. None otherwise."""
        chunks: list[tuple[Request, int]] = []
        free = state.pool.free - state.blocks_next
        for request in state.prefilling:
            tokens = request.target - request.computed
            if 0 < threshold < tokens:
                tokens = threshold
            if tokens > budget:
                if request.order < state.last_decode_order:
                    return None
                tokens = budget
                if not tokens:
                    break
            free -= state.blocks_for(request, tokens)
            if free < 0:
                return None
            budget -= tokens
            chunks.append((request, tokens))
        return chunks

    def most_running(self, state: EngineState) -> int:
        """Requests that may run when a batch of this state has been planned."""
        del state
        return self.max_num_seqs

    def _admit(self, state: EngineState, step: Step, budget: int, threshold: int) -> None:
        """Admit waiting requests in order while sequences, budget and blocks last."""
        waiting = state.waiting
        pool = state.pool
        size = state.block_size
        most = self.most_running(state)
        while budget > 0 and waiting and len(state.running) < most:
            request = waiting[0]
            if request is state.refused and state.least_need(request) > pool.free:
                return
            hit = state.hit(request) if request.table is not None else NO_HIT
            if hit.loaded and state.asides is not None and state.asides.loads:
                spare = int(self.watermark * (pool.num_blocks + 1)) if self.watermark and state.running else 0
                if not state.asides.load(request, hit, spare):
                    return
                continue
            target = request.target
            computed = hit.reused * size
            tokens = target - computed
            if 0 < threshold < tokens:
                tokens = threshold
            if tokens > budget:
                if not self.chunked:
                    return
                tokens = budget
            reserve = target if self.reserve_prompt else computed + tokens
            need = state.blocks_of(reserve) - hit.blocks + hit.free_blocks
            if self.watermark and state.running:
                need += int(self.watermark * (pool.num_blocks + 1))
            if need > pool.free:
                if self.remembers and not hit.free_blocks:
                    state.refuse(request, need)
                return
            waiting.popleft()
            state.admit(request, hit, step)
            state.chunk(request, tokens, step)
            budget -= tokens

    def _walk(self, state: EngineState) -> Step | None:
        """Blocks or budget do not suffice for everybody: go through the running requests one by one and preempt."""
        step = Step(decodes=False)
        threshold = self._threshold(state)
        pool = state.pool
        budget = self.budget
        given: Shares = {}
        for request in list(state.running):
            if budget <= 0:
                break
            tokens, blocks = self._share(state, request, budget, threshold)
            if not tokens:
                continue
            budget += self._make_room(state, step, request, blocks, given)
            if request in state.running:
                pool.take(blocks)
                given[request] = (tokens, blocks)
                budget -= tokens
            elif not self.by_priority:
                break  # it preempted itself; the ones after it were preempted before
        mine = [r for r in state.running if r.decoding and r.lane == state.lane]
        step.held = [request for request in mine if request not in given]
        step.decodes = len(mine) > len(step.held)
        for request, (tokens, blocks) in given.items():
            if not request.decoding:
                pool.give_back(blocks)  # ``chunk`` takes them
                state.chunk(request, tokens, step)
        if budget > 0 and state.waiting and not step.preempted:
            self._admit(state, step, budget, threshold)
        pool.give_back(sum(blocks for request, (_, blocks) in given.items() if request.decoding))  # as in ``schedule``
        return step if step.decodes or step.chunks or step.preempted else None

    @staticmethod
    def _share(state: EngineState, request: Request, budget: int, threshold: int) -> tuple[int, int]:
        """Tokens a request gets from what is left of the budget, and the blocks they take. (0, 0): none of its own."""
        if request.decoding:
            if request.lane != state.lane:
                return 0, 0  # in flight in another batch of the pipeline
            return 1, state.next_block(request)
        if request not in state.prefilling:
            return 0, 0  # preempted by one before it, or its last token is on the way
        tokens = request.target - request.computed
        if 0 < threshold < tokens:
            tokens = threshold
        tokens = min(tokens, budget)
        return tokens, state.blocks_for(request, tokens)

    def _make_room(self, state: EngineState, step: Step, request: Request, blocks: int, given: Shares) -> int:
        """Preempt until ``request`` can take ``blocks``, itself in the end; returns the budget that frees."""
        freed = 0
        while state.pool.free < blocks and request in state.running:
            victim = self._victim(state)
            scheduled, _ = given.pop(victim, (0, 0))
            freed += scheduled
            state.preempt(victim, step, scheduled)
        return freed

    def _victim(self, state: EngineState) -> Request:
        if self.by_priority:
            return max(state.running, key=lambda request: (request.priority, request.arrival))
        return next(reversed(state.running))


POLICIES.register("vllm")(Vllm)
