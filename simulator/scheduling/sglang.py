"""The scheduler of SGLang."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Annotated, Literal

from simulator.core.errors import PolicyError
from simulator.core.options import Range, read_options
from simulator.kv.prefix import PrefixCache
from simulator.scheduling.args import EngineArgs
from simulator.scheduling.policy import POLICIES, Policy
from simulator.scheduling.request import Request
from simulator.scheduling.state import EngineState
from simulator.scheduling.step import DECODE, Step

LPM_QUEUE = 128  # requests; with more waiting, longest-prefix-match gives way to fcfs
SHARED_TOKENS = 32  # a waiting request that shares this much with one before it, and has no longer hit, comes last
CLIP_TOKENS = 4096  # of an estimate of the tokens a request is still to make
RETRACT_STEPS = 20  # decode steps for which a retraction makes the estimate reserve


@dataclass(frozen=True, slots=True)
class SglangOptions:
    """schedule_policy: order of the waiting queue. max_prefill_tokens: of a prefill batch (it binds where prompts are
    not chunked). schedule_conservativeness: scales the share of their max_new_tokens that running requests are expected
    to use. max_new_tokens: what clients ask for; 0: exactly what the trace generates. ignore_eos: clients want exactly
    max_new_tokens, so the estimate takes them whole."""

    schedule_policy: Literal["lpm", "fcfs"] = "fcfs"
    max_prefill_tokens: Annotated[int, Range(1)] = 16384
    schedule_conservativeness: Annotated[float, Range(0)] = 1.0
    max_new_tokens: Annotated[int, Range(0)] = 0
    ignore_eos: bool = False


@POLICIES.register("sglang")
class Sglang(Policy):
    """SGLang: prefill first in chunks, admission by an estimate of the tokens to come, cache-aware order.

    Decides: while waiting requests fit, the next step computes prompts and no decode, up to ``max_num_batched_tokens``
    (its chunked_prefill_size; the last prompt is cut and goes on in the next step, before anything else). A request
    fits when the tokens free or evictable exceed its prompt and max_new_tokens and what running requests are expected
    to add: the rest of their max_new_tokens times a ratio that starts at 0.7, falls to 0.098 over 600 decode steps and
    starts anew when the engine is idle. Once one does not fit, nobody is tried until a request leaves. Out of memory,
    requests with the shortest output are retracted to the end of the queue and the ratio is set by what was really
    generated. ``lpm`` sorts the queue by cached prefix (requests that share 32 tokens with one before them wait for its
    prefix to be cached), unless more than 128 wait.
    Why it helps: low TTFT, a high hit rate of shared prefixes, and more requests than reserving max_new_tokens would
    admit.
    Limits: decodes stall while prompts come, as in ``vllm-v0``; lpm may starve a request without a prefix. The radix
    tree matches tokens (page size 1), here blocks of ``block_size`` with the ids of the trace: set block_size: 1 for
    its granularity. A retracted request may hit what it generated before, as long as that is not evicted; SGLang drops
    it. Priorities and mixed chunks are not modelled.
    Reference: Zheng et al., 2024 (arXiv:2312.07104); ``srt/managers`` of SGLang 0.5.23 (schedule_policy.py,
    scheduler.py, schedule_batch.py, new_token_ratio_tracker.py), whose default order is fcfs.
    """

    async_by_default = True
    promises = True
    unused = frozenset({"long_prefill_token_threshold", "scheduler_reserve_full_isl", "watermark", "scheduling_policy"})

    def __init__(self, args: EngineArgs) -> None:
        options = read_options(SglangOptions, args.policy, args.options)
        self.max_num_seqs = args.max_num_seqs
        self.chunk = args.max_num_batched_tokens if args.enable_chunked_prefill else 0
        if self.chunk % args.block_size:
            raise PolicyError(
                f"engine policy {args.policy!r}: max_num_batched_tokens = {self.chunk} is not a multiple of "
                f"block_size = {args.block_size}.",
                remedy="Chunks of prompts are whole blocks: choose a multiple.",
            )
        self.max_prefill_tokens = options.max_prefill_tokens
        self.lpm = options.schedule_policy == "lpm"
        if self.lpm and args.enable_prefix_caching is False:
            raise PolicyError(
                f"engine policy {args.policy!r}: schedule_policy 'lpm' needs prefix caching.",
                remedy="Turn enable_prefix_caching on, or choose schedule_policy: fcfs.",
            )
        self.max_new_tokens = options.max_new_tokens
        self.ignore_eos = options.ignore_eos
        self.first_ratio = min(0.7 * options.schedule_conservativeness, 1.0)
        self.least_ratio = min(self.first_ratio * 0.14, 1.0)
        self.decay = (self.first_ratio - self.least_ratio) / 600
        self.anchor = (self.first_ratio, 0)  # the ratio at a token step
        self.full = 0  # requests running when one did not fit; 0: try

    def prepare(self, state: EngineState) -> None:
        self.queue: deque[Request] = deque()
        state.waiting = self.queue

    def arrive(self, state: EngineState, request: Request) -> bool:
        if not state.running and not state.waiting:
            self.anchor = (self.first_ratio, state.token_steps)  # the engine was idle
        state.waiting.append(request)
        return not self.full and len(state.running) - len(state.releasing) < self.max_num_seqs

    def schedule(self, state: EngineState) -> Step | None:
        step = Step(decodes=False)
        if len(state.running) < self.full:
            self.full = 0
        if state.prefilling or (state.waiting and not self.full):
            self.prefill(state, step)
            if step.chunks:
                return step
        if state.blocks_next > state.pool.free:
            self.retract(state, step)
        step.decodes = state.num_decodes > 0
        if step.preempted:
            return step
        return DECODE if step.decodes else None

    # -- prompts -----------------------------------------------------------------------------------------------

    def prefill(self, state: EngineState, step: Step) -> None:
        """The prompt in progress, then waiting ones while budget, sequences and the estimate allow."""
        if not state.prefilling and len(state.running) >= self.max_num_seqs:  # the queue is not sorted for nobody
            self.full = len(state.running)
            return
        size = state.block_size
        ratio = self.ratio(state)
        made = state.token_steps + 1  # less ``prompt_tokens - offset``
        owed = sum(self.to_come(r, r.offset + made - r.prompt_tokens) for r in state.running if r.decoding)
        promised = owed * ratio
        budget = self.chunk or self.max_prefill_tokens
        for request in list(state.prefilling):  # one at most
            tokens = min(request.target - request.computed, budget)
            state.chunk(request, tokens, step)
            budget -= -(-tokens // size) * size
            promised += size
            if request not in state.prefilling:
                promised += self.to_come(request, request.target - request.prompt_tokens)
        if self.lpm:
            self.sort(state)
        while state.waiting and budget > 0:
            if len(state.running) >= self.max_num_seqs:
                self.full = len(state.running)
                return
            request = state.waiting[0]
            hit = state.hit(request)
            tokens = request.target - hit.reused * size
            paged = -(-tokens // size) * size
            to_come = self.to_come(request, request.target - request.prompt_tokens)
            free = (state.pool.free - hit.free_blocks - hit.loaded) * size
            if state.running and tokens + to_come + size >= free - promised:
                self.full = len(state.running)
                return
            if not self.chunk and step.chunks and paged >= budget:
                return
            if self.chunk and paged > budget:
                tokens = paged = budget
                to_come = 0
            state.waiting.popleft()
            state.admit(request, hit, step)
            state.chunk(request, tokens, step)
            budget -= paged
            promised += size + to_come

    def to_come(self, request: Request, made: int) -> int:
        """Tokens that a request which has made ``made`` may still make."""
        return min(max((self.max_new_tokens or request.output_tokens) - made, 0), CLIP_TOKENS)

    def sort(self, state: EngineState) -> None:
        """Longest cached prefix first; of requests that share a prefix nobody has computed, one goes first."""
        queue = self.queue
        pool = state.pool
        if len(queue) > LPM_QUEUE or len(queue) < 2 or not isinstance(pool, PrefixCache):
            return
        size = state.block_size
        at = -(-SHARED_TOKENS // (size * pool.unit)) - 1  # the id that stands for the first 32 tokens
        seen: set[int] = set()
        keys: dict[Request, float] = {}
        for request in queue:
            keys[request] = -state.hit(request).blocks * size
            ids = request.table.ids if request.table is not None else ()
            if -keys[request] <= SHARED_TOKENS and len(ids) > at:
                if ids[at] in seen:
                    keys[request] = 1  # after those without any hit
                seen.add(ids[at])
        ordered = sorted(queue, key=keys.__getitem__)
        queue.clear()
        queue.extend(ordered)

    # -- memory ------------------------------------------------------------------------------------------------

    def ratio(self, state: EngineState) -> float:
        """Expected share of the tokens to come; it falls with every decode step."""
        if self.ignore_eos:
            return 1.0
        value, since = self.anchor
        return max(value - self.decay * (state.token_steps - since), self.least_ratio)

    def retract(self, state: EngineState, step: Step) -> None:
        """Send back the requests with the shortest outputs, longest prompt first, until the others can decode."""
        order = sorted(
            (request for request in state.running if request.decoding),
            key=lambda request: (request.offset - request.prompt_tokens, -request.prompt_tokens),
            reverse=True,
        )
        while state.blocks_next > state.pool.free:
            state.preempt(order.pop(), step)
            self.queue.append(self.queue.popleft())
        steps = state.token_steps
        made = sum(request.offset + steps + 1 - request.prompt_tokens for request in order)
        asked = sum(self.max_new_tokens or request.output_tokens for request in order)
        self.anchor = (min((made + RETRACT_STEPS * len(order)) / (asked + 1), 1.0), steps)
