"""Elastic sequence parallelism (LoongServe)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil, inf
from typing import Annotated

from simulator.core.errors import PolicyError
from simulator.core.options import Range, read_options
from simulator.scheduling.args import EngineArgs
from simulator.scheduling.elastic import Allotment, ElasticPolicy, Instances, Prefill
from simulator.scheduling.paging import make_room
from simulator.scheduling.policy import CHUNKING, POLICIES
from simulator.scheduling.request import Request
from simulator.scheduling.state import EngineState
from simulator.scheduling.step import DECODE, Step

WORTH = 0.9  # decodes take another instance when steps get shorter than this share


@dataclass(frozen=True, slots=True)
class LoongServeOptions:
    """Options. tipping_tokens: prompt tokens per instance from which on a batch is bound by compute, so that more
    requests would only wait for each other. scale_down: KV stays on as few instances as hold it; false: on all that
    computed it. scale_up: decodes take idle instances to compute faster; false: for their KV only."""

    tipping_tokens: Annotated[int, Range(1)] = 2048
    scale_down: bool = True
    scale_up: bool = True


@POLICIES.register("loongserve")
class LoongServe(ElasticPolicy):
    """LoongServe: ``prefill_context_parallel_size`` instances form groups of any size, anew for every iteration.

    Decides: waiting prompts are taken in order while memory lasts and until they keep the idle instances busy
    (``tipping_tokens``). Sorted by length, they are cut into batches on groups of instances such that the sum of their
    latencies is least (dynamic programming over a price ``a + b L + c L^2`` per group size). Decodes give up the
    instance that holds the least KV when the prompts gain more than moving it costs everybody; a prompt that fits no
    other way pauses them and runs on their instances, too. When a batch ends its KV stays on as few of its instances
    as hold it, at no transfer: ring attention has passed it by every one. Decodes take idle instances when their KV
    needs them, or when they are bound by compute (their tokens are spread over several masters).
    Why it helps: long prompts get all GPUs, short ones do not wait for them on a few, and decodes run beside both.
    Limits: prompts are computed whole, in order; the head of the queue holds up those behind it while instances are
    gathered for it. All decodes are one group, each of whose instances holds its share of what ends there. Expected
    lengths of answers play no part. No prefix caching.
    Reference: Wu et al., SOSP 2024 (arXiv:2404.09526), sections 4 and 5.
    """

    elastic = True
    prefix_caching = False
    unused = CHUNKING | {"scheduling_policy"}

    def __init__(self, args: EngineArgs) -> None:
        self.options = read_options(LoongServeOptions, args.policy, args.options)
        for name in ("enable_prefix_caching", "async_scheduling"):
            if getattr(args, name):
                raise PolicyError(
                    f"engine policy {args.policy!r}: {name} is not modelled.", remedy="Leave it out, or false."
                )
        if 0 < args.max_num_batched_tokens < args.max_model_len:
            raise PolicyError(
                f"engine policy {args.policy!r} computes prompts whole: max_num_batched_tokens = "
                f"{args.max_num_batched_tokens} is less than max_model_len = {args.max_model_len}.",
                remedy=f"Set max_num_batched_tokens: {args.max_model_len}, or a smaller max_model_len.",
            )
        self.max_num_seqs = args.max_num_seqs

    def prepare(self, state: EngineState) -> None:
        self._waiting: deque[Request] = deque()
        state.waiting = self._waiting

    def arrive(self, state: EngineState, request: Request) -> bool:
        state.waiting.append(request)
        return True

    def schedule(self, state: EngineState) -> Step | None:
        """The next token of everybody who decodes; out of blocks, the last admitted is recomputed."""
        if state.blocks_next <= state.pool.free:
            return DECODE if state.num_decodes else None
        step = Step(decodes=True)
        make_room(state, step)
        step.decodes = state.num_decodes > 0
        return step

    # -- prompts ------------------------------------------------------------------------------------------------

    def allot(self, state: EngineState, instances: Instances) -> Allotment | None:
        """See ``ElasticPolicy``."""
        if not state.waiting:
            return None
        x, held = instances, sorted(instances.held)
        chosen, given, moved = self._dispatch(state, x, x.idle), 0, 0.0
        latency, batches = _batches(chosen, x.idle, x)
        for more in range(1, len(held)):
            if sum(held) > (len(held) - more) * x.capacity:
                break
            wider = self._dispatch(state, x, x.idle + more)
            if not wider:
                continue
            same = chosen or wider  # who gains: those that could begin without it, or all that could not
            waits = latency if chosen else x.next_idle_s * len(wider)
            moves = x.move_s(sum(held[:more]))
            if waits - _batches(same, x.idle + more, x)[0] <= (moves - moved) * (state.num_decodes + len(same)):
                break
            chosen, given, moved = wider, more, moves
            latency, batches = _batches(chosen, x.idle + given, x)
        return self._allotment(batches, x, given) if batches else self._pausing(state, x)

    def _dispatch(self, state: EngineState, x: Instances, instances: int) -> list[Request]:
        """The first of the queue that fit on so many instances and keep them busy."""
        room = min(state.pool.free * state.block_size - state.num_decodes, instances * x.capacity)
        at_once = instances * x.prompt_tokens
        seqs = self.max_num_seqs - len(state.running)
        chosen: list[Request] = []
        tokens = 0
        for request in self._waiting:
            need = -(-request.target // state.block_size) * state.block_size
            if len(chosen) >= seqs or tokens + need > room or tokens + request.target > at_once:
                break
            if chosen and tokens >= self.options.tipping_tokens * instances:
                break
            chosen.append(request)
            tokens += need
        return chosen

    def _pausing(self, state: EngineState, x: Instances) -> Allotment | None:
        """The head of the queue on all instances, where it fits on nothing less and no prompt is under way."""
        everywhere = x.idle + len(x.held)
        chosen = self._dispatch(state, x, everywhere)[:1]
        if not chosen or not x.held or not x.may_pause or x.next_idle_s < inf:
            return None
        return Allotment((Prefill(tuple(chosen), everywhere, self._kept(chosen, everywhere, x)),), pauses=True)

    def _allotment(self, batches: Sequence[tuple[Sequence[Request], int]], x: Instances, gives_up: int) -> Allotment:
        made = tuple(Prefill(tuple(requests), n, self._kept(requests, n, x)) for requests, n in batches)
        return Allotment(made, gives_up)

    def _kept(self, requests: Sequence[Request], instances: int, x: Instances) -> int:
        if not self.options.scale_down:
            return instances
        return min(ceil(sum(r.target for r in requests) / x.capacity), instances)

    # -- decodes ------------------------------------------------------------------------------------------------

    def grows_by(self, state: EngineState, instances: Instances) -> int:
        """See ``ElasticPolicy``."""
        mine, n = len(instances.held), state.num_decodes
        needed = ceil((sum(instances.held) + n) / instances.capacity) - mine
        if needed > 0:
            return min(needed, instances.idle)
        if not self.options.scale_up or state.waiting or not instances.idle:
            return 0
        return 1 if instances.decode_s(mine + 1, n) < WORTH * instances.decode_s(mine, n) else 0


def _batches(
    requests: Sequence[Request], instances: int, x: Instances
) -> tuple[float, list[tuple[Sequence[Request], int]]]:
    """(sum of latencies in s, batches with their instances), the least there is; (inf, []) where none fits.

    Requests of similar length share a batch: sorted by length, batches are runs of them (section 5.3).
    """
    if not requests or not instances:
        return inf, []
    ordered = sorted(requests, key=lambda r: (-r.target, r.row))
    lengths = [r.target for r in ordered]
    tokens = [0, *accumulate(lengths)]
    squares = [0, *accumulate([n * n for n in lengths])]
    most = min(x.capacity, x.prompt_tokens)
    count = len(ordered)
    # best[k][i]: (latency, instances of the last batch, its first request) of the first i requests on k instances.
    best = [[(0.0, 0, 0)] + [(inf, 0, 0)] * count for _ in range(instances + 1)]
    for k in range(1, instances + 1):
        for i in range(1, count + 1):
            best[k][i] = best[k - 1][i]
            for size in range(1, k + 1):
                for first in range(i - 1, -1, -1):
                    new = tokens[i] - tokens[first]
                    if new > size * most:
                        break
                    before = best[k - size][first][0]
                    if before == inf:
                        continue
                    latency = before + (i - first) * x.prefill_s(size, new, squares[i] - squares[first])
                    if latency < best[k][i][0]:
                        best[k][i] = (latency, size, first)
    return best[instances][count][0], _read(best, ordered, instances)


def _read(
    best: Sequence[Sequence[tuple[float, int, int]]], ordered: Sequence[Request], instances: int
) -> list[tuple[Sequence[Request], int]]:
    """Batches of the best split, the longest requests first; none where there is no split."""
    k, i, found = instances, len(ordered), []
    if best[k][i][0] == inf:
        return []
    while i:
        while k and best[k - 1][i] == best[k][i]:
            k -= 1
        _, size, first = best[k][i]
        found.append((ordered[first:i], size))
        k, i = k - size, first
    return found[::-1]
