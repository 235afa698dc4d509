"""What policies with paged KV blocks share: who may join, who gives way, chunks of prompts."""

from __future__ import annotations

from collections import deque

from simulator.scheduling.args import EngineArgs
from simulator.scheduling.queues import PriorityQueue
from simulator.scheduling.request import Request
from simulator.scheduling.state import EngineState, Queue
from simulator.scheduling.step import DECODE, Step


def waiting_queue(args: EngineArgs) -> Queue:
    """The queue that ``scheduling_policy`` names."""
    return PriorityQueue() if args.scheduling_policy == "priority" else deque()


def may_join(state: EngineState, request: Request, max_num_seqs: int) -> bool:
    """Whether a request that has just been queued might be admitted at the next step: behind a head that does not
    fit, or without a free sequence, it only waits."""
    return state.waiting[0] is request and sequence_free(state, max_num_seqs)


def sequence_free(state: EngineState, max_num_seqs: int) -> bool:
    """Whether one more might run. Where not, an arrival does not end a span, and must not change its steps."""
    return len(state.running) - len(state.releasing) < max_num_seqs


def last_admitted(state: EngineState) -> Request | None:
    """The request that gives way first: the last one admitted, or the one of lowest priority."""
    candidates = (r for r in reversed(state.running) if r.decoding or r in state.prefilling)
    if state.args.scheduling_policy == "priority":
        return max(candidates, key=lambda request: (request.priority, request.arrival), default=None)
    return next(candidates, None)


def make_room(state: EngineState, step: Step) -> None:
    """Preempt by recomputation until every request that still decodes gets the block it needs next."""
    while state.blocks_next > state.pool.free:
        victim = last_admitted(state)
        assert victim is not None  # it is one of those that decode
        state.preempt(victim, step)


def next_chunks(state: EngineState, step: Step, budget: int) -> int:
    """Go on with the running prompts, as far as budget and blocks reach; returns what is left of the budget."""
    size = state.block_size
    for request in list(state.prefilling):
        room = state.pool.free * size + -request.computed % size
        tokens = min(request.target - request.computed, budget, room)
        if tokens <= 0:
            break
        state.chunk(request, tokens, step)
        budget -= tokens
    return budget


def admit_chunks(state: EngineState, step: Step, budget: int, max_num_seqs: int, *, whole: bool, spare: int) -> None:
    """Admit waiting requests with their first chunks while budget, sequences and blocks last.

    whole: only when blocks for the whole prompt are free; else for as much of it as fits.
    spare: blocks that stay free, unless nobody runs.
    """
    waiting = state.waiting
    pool = state.pool
    size = state.block_size
    while budget > 0 and waiting and len(state.running) < max_num_seqs:
        request = waiting[0]
        hit = state.hit(request)
        computed = hit.reused * size
        free = pool.free - hit.free_blocks - hit.loaded - (spare if state.running else 0)
        room = free * size
        tokens = request.target - computed
        if whole and tokens > room:
            return
        tokens = min(tokens, budget, room)
        if tokens <= 0:
            return
        waiting.popleft()
        state.admit(request, hit, step)
        state.chunk(request, tokens, step)
        budget -= tokens


def chunked_step(state: EngineState, budget: int, max_num_seqs: int, *, whole: bool, spare: int) -> Step | None:
    """Every decoding request makes a token, then prompts fill the rest of ``budget``: first those begun, then those
    that wait. The order of Sarathi-Serve and of SplitFuse."""
    step = Step(decodes=False)
    if state.blocks_next > state.pool.free:
        make_room(state, step)
    budget -= state.num_decodes
    if budget > 0 and (state.prefilling or state.waiting):
        ahead = state.blocks_next
        state.pool.take(ahead)  # decodes come first: theirs are out of reach of the prompts
        budget = next_chunks(state, step, budget)
        begun = step.requests[-1] in state.prefilling if step.requests else bool(state.prefilling)
        if not begun and not step.preempted:
            admit_chunks(state, step, budget, max_num_seqs, whole=whole, spare=spare)
        state.pool.give_back(ahead)  # taken again as the step is applied
    return planned(state, step, full=not sequence_free(state, max_num_seqs))


def planned(state: EngineState, step: Step, *, full: bool = False) -> Step | None:
    """The step with the decoding batch in it; ``DECODE`` when there is nothing else, None when there is nothing.

    full: who waits has to wait until somebody ends, whatever else changes.
    """
    step.decodes = state.num_decodes > 0
    if step.chunks or step.preempted:
        return step
    if not step.decodes:
        return None
    # A prompt that waits for blocks may get some as soon as a finished request is gone, and what a waiting one finds in
    # tiers, and so what it needs, changes with time: look again at every step.
    return step if state.prefilling or (state.tiers is not None and state.waiting and not full) else DECODE
