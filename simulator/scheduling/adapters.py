"""LoRA adapters inside an engine: which are in GPU memory, who may be admitted, and what the batch computes with.

*Slots* (vLLM): memory for ``max_loras`` adapters is set aside. A request whose adapter finds none is passed over until
one is free; a missing adapter is copied from the host before the step that needs it, which waits. Adapters stay until
their slot is needed, the least recently used goes first.

*Pages* (S-LoRA's unified paging): adapters take KV blocks while they are used. Requests are admitted in order; adapters
of the next ones are fetched while the batch computes, and given back when nobody runs or waits with them.

*Merged* (dLoRA, with slots): an adapter that most requests ask for is added to the weights, so that computing with it
costs nothing; nobody else runs meanwhile: others end first, or pause with their KV where it is. Requests that others
pass while they wait gain credit; when it is spent, the adapter is taken out again and those who waited come first.

Reference: Sheng et al., S-LoRA, MLSys 2024 (arXiv:2311.03285), sections 5 and 4.1; vLLM 0.33, ``config/lora.py`` and
``v1/core/sched/scheduler.py`` (a request that would exceed ``max_loras`` is skipped); Wu et al., dLoRA, OSDI 2024,
section 4: there credits are taken from adapters that starve others; here they count requests that passed others.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import cast

from simulator.kv.pool import BlockPool
from simulator.kv.prefix import Hit
from simulator.scheduling.args import EngineArgs
from simulator.scheduling.policy import Policy
from simulator.scheduling.request import Request
from simulator.scheduling.state import EngineState
from simulator.scheduling.step import DECODE, Step
from simulator.scheduling.vllm import Vllm

LOOKAHEAD = 8  # waiting requests whose adapters are fetched
NONE = -1  # code of a request for the model as it is


@dataclass(frozen=True, slots=True)
class MergePlan:
    """When an adapter is merged into the weights.

    share: of the requests waiting and running that must ask for it; it is taken out below half of that. credit:
    requests that may pass others meanwhile. seconds: that merging takes, or taking out. pauses: running requests for
    others wait with their KV on the GPU until it is taken out, instead of ending before it is merged.
    """

    share: float
    credit: int
    seconds: float
    pauses: bool = False


@dataclass(frozen=True, slots=True)
class LoraPlan:
    """Adapters of an engine.

    ranks: of adapters 0, 1, ..., repeated. max_loras: different ones in a batch; None: as many as fit (pages alone).
    load_s: seconds from the host, per rank. blocks: KV blocks of an adapter of rank 1 (a fraction) where they are
    paged, 0 where they have slots. seconds: what a step with so many tokens of requests with adapters takes beside the
    model's own, by the sum of the ranks of the different ones.
    """

    ranks: tuple[int, ...]
    max_loras: int | None
    load_s: float
    blocks: float
    seconds: Callable[[int, int], float]
    merge: MergePlan | None = None

    @property
    def paged(self) -> bool:
        return self.blocks > 0.0

    def rank(self, adapter: int) -> int:
        return self.ranks[adapter % len(self.ranks)]

    def pages(self, adapter: int) -> int:
        """KV blocks that an adapter takes."""
        whole = int(self.rank(adapter) * self.blocks)
        return whole + (self.rank(adapter) * self.blocks > whole)


class Batch:
    """The adapters that a step computes with, for its price."""

    __slots__ = ("_chunks", "_decodes", "_plan", "_ranks", "merged", "tokens")

    def __init__(self, plan: LoraPlan) -> None:
        self._plan = plan
        self._decodes: Counter[int] = Counter()  # adapter -> decoding requests
        self._ranks = 0  # sum over those adapters
        self.tokens = 0  # decoding requests with an adapter
        self.merged = False  # the one adapter there is is part of the weights
        self._chunks: Counter[int] = Counter()  # adapter -> prompt tokens of the step that is planned

    def join(self, adapter: int) -> None:
        self.tokens += 1
        self._decodes[adapter] += 1
        if self._decodes[adapter] == 1:
            self._ranks += self._plan.rank(adapter)

    def leave(self, adapter: int) -> None:
        self.tokens -= 1
        self._decodes[adapter] -= 1
        if not self._decodes[adapter]:
            del self._decodes[adapter]
            self._ranks -= self._plan.rank(adapter)

    def chunk(self, adapter: int, tokens: int) -> None:
        self._chunks[adapter] += tokens

    def decode_s(self) -> float:
        """What adapters add to a step of decodes."""
        return self._plan.seconds(self.tokens, self._ranks) if self.tokens and not self.merged else 0.0

    def mixed_s(self, *, decodes: bool) -> float:
        """The same for the step planned last, with its chunks."""
        tokens, ranks = (self.tokens, self._ranks) if decodes else (0, 0)
        for adapter, number in self._chunks.items():
            tokens += number
            if not decodes or adapter not in self._decodes:
                ranks += self._plan.rank(adapter)
        self._chunks.clear()
        return self._plan.seconds(tokens, ranks) if tokens and not self.merged else 0.0


class Adapters:
    """Adapters in the GPU memory of one engine."""

    def __init__(self, plan: LoraPlan, codes: Sequence[int], pool: BlockPool) -> None:
        """codes: adapter of each row of the trace."""
        self.plan = plan
        self.batch = Batch(plan)
        self._codes = codes
        self._pool = pool
        self.users: Counter[int] = Counter()  # adapter -> running requests
        self.plain = 0  # running requests without one
        self.loaded: dict[int, None] = {}  # least recently used first; being fetched included
        self.ready: dict[int, float] = {}  # of those being fetched: when they are there, s
        self.kept: set[int] = set()  # paged: of the next requests, seen when the last step was planned
        self._link_free = 0.0  # s, when the link to the host is
        self.waited_s = 0.0  # that the step being planned waits for adapters
        self.chosen: int | None = None  # the one that is merged, or will be when the others have ended
        self.passed = 0  # requests that passed others since it was chosen
        self.paused = 0  # running requests that wait for it to be taken out
        self.owed = 0  # requests to admit in order before another one is chosen

    def of(self, request: Request) -> int:
        return self._codes[request.row]

    def admissible(self, adapter: int) -> bool:
        """Whether a request with it could run in the next step, as far as adapters go."""
        if self.chosen is not None and adapter != self.chosen:
            return False
        if adapter == NONE:
            return True
        if self.plan.paged:
            return adapter in self.loaded and adapter not in self.ready
        return adapter in self.users or len(self.users) < cast("int", self.plan.max_loras)

    def use(self, adapter: int) -> None:
        """A request with it runs from now on."""
        if adapter == NONE:
            self.plain += 1
            return
        self.users[adapter] += 1
        if not self.plan.paged and adapter not in self.loaded:
            while len(self.loaded) >= cast("int", self.plan.max_loras):
                del self.loaded[next(a for a in self.loaded if a not in self.users)]
            self.waited_s += self.plan.load_s * self.plan.rank(adapter)
        self.loaded.pop(adapter, None)
        self.loaded[adapter] = None

    def done(self, adapter: int) -> None:
        """A request with it runs no longer."""
        if adapter == NONE:
            self.plain -= 1
            return
        self.users[adapter] -= 1
        if not self.users[adapter]:
            del self.users[adapter]
            if self.plan.paged and adapter not in self.kept:
                self.drop(adapter)

    def choose(self, plan: MergePlan, waiting: Counter[int], prefilling: Iterable[Request]) -> int:
        """Take an adapter out, merge one, both, or leave all as it is; how often the weights change now. What it
        decides holds until requests come or go, or prompts end."""
        total = self.plain + sum(self.users.values()) + sum(waiting.values())
        changes = 0
        chosen = self.chosen
        if chosen is not None:
            asked = self.users[chosen] + waiting[chosen]
            if self.passed > plan.credit or asked < 0.5 * plan.share * total or not asked:
                changes += self.take_out(waiting)
        if self.chosen is None and total and self.owed <= 0:
            most = max({*self.users, *waiting}, key=lambda a: (self.users[a] + waiting[a], -a), default=NONE)
            if most != NONE and self.users[most] + waiting[most] >= plan.share * total:
                self.chosen, self.passed = most, 0
        if plan.pauses:
            alone = all(self.of(request) == self.chosen for request in prefilling)  # prompts end first
        else:
            alone = not self.plain and not self.users.keys() - {self.chosen}
        if self.chosen is not None and alone and not self.batch.merged:
            self.batch.merged = True
            changes += 1
        return changes

    def take_out(self, waiting: Counter[int]) -> int:
        """Nobody's adapter is to be merged: those who wait come first. 1 if the weights change, else 0."""
        self.owed = sum(waiting.values()) - waiting[cast("int", self.chosen)]
        self.chosen, merged = None, self.batch.merged
        self.batch.merged = False
        return int(merged)

    def drop(self, adapter: int) -> None:
        """Give the pages of an unused adapter back."""
        del self.loaded[adapter]
        self.ready.pop(adapter, None)
        self._pool.give_back(self.plan.pages(adapter))

    def fetch(self, now: float, wanted: Sequence[Request], spare: int) -> None:
        """Paged: note what has arrived, drop what nobody uses, fetch what the next requests miss while memory lasts.

        spare: blocks that stay free for the batch's next step.
        """
        for adapter in [a for a, at in self.ready.items() if at <= now]:
            del self.ready[adapter]
        self.kept = {self.of(request) for request in wanted}
        if len(self.loaded) > len(self.users):
            for adapter in [a for a in self.loaded if a not in self.users and a not in self.kept]:
                self.drop(adapter)
        limit = self.plan.max_loras
        for request in wanted:
            adapter = self.of(request)
            if adapter == NONE or adapter in self.loaded:
                continue
            prompt = -(-request.target // self._pool.block_size)
            pages = self.plan.pages(adapter)
            full = limit is not None and len(self.loaded) >= limit
            if full or pages + prompt + spare > self._pool.free:
                return
            self._pool.take(pages)
            self._link_free = max(self._link_free, now) + self.plan.load_s * self.plan.rank(adapter)
            self.loaded[adapter] = None
            self.ready[adapter] = self._link_free


class AdapterQueue:
    """Waiting requests; ``[0]`` is the next one whose adapter may run.

    With slots, later requests pass those whose adapter finds none; with pages the order is kept. True while there is
    anybody to admit; its length counts all.
    """

    __slots__ = ("_adapters", "_order", "_waiting")

    def __init__(self, adapters: Adapters) -> None:
        self._adapters = adapters
        self._order: deque[Request] = deque()
        self._waiting: Counter[int] = Counter()  # adapter -> requests

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._order)

    def __bool__(self) -> bool:
        return self._next() is not None

    def __getitem__(self, index: int) -> Request:
        found = None if index else self._next()
        return self._order[index if found is None else found]

    def _next(self) -> int | None:
        """Place of the next request to admit."""
        adapters = self._adapters
        if not self._order:
            return None
        if adapters.admissible(adapters.of(self._order[0])):
            return 0
        if adapters.plan.paged or not any(adapters.admissible(adapter) for adapter in self._waiting):
            return None
        return next(i for i, request in enumerate(self._order) if adapters.admissible(adapters.of(request)))

    def append(self, request: Request) -> None:
        self._order.append(request)
        self._waiting[self._adapters.of(request)] += 1

    def appendleft(self, request: Request) -> None:
        self._order.appendleft(request)
        self._waiting[self._adapters.of(request)] += 1

    def popleft(self) -> Request:
        place = self._next() or 0
        self._adapters.passed += place > 0 or self._adapters.paused > 0
        self._adapters.owed -= 1
        request = self._order[place]
        del self._order[place]
        adapter = self._adapters.of(request)
        self._waiting[adapter] -= 1
        if not self._waiting[adapter]:
            del self._waiting[adapter]
        return request

    @property
    def counts(self) -> Counter[int]:
        """Waiting requests by adapter."""
        return self._waiting

    def first(self, number: int) -> list[Request]:
        return list(islice(self._order, number))


class AdapterState(EngineState):
    """An ``EngineState`` that knows which adapters run."""

    __slots__ = ("adapters",)

    def __init__(self, args: EngineArgs, pool: BlockPool, adapters: Adapters, *, window: int | None = None) -> None:
        super().__init__(args, pool, window=window)
        self.adapters = adapters
        self.waiting = AdapterQueue(adapters)

    def admit(self, request: Request, hit: Hit, step: Step) -> None:
        super().admit(request, hit, step)
        self.adapters.use(self.adapters.of(request))

    def chunk(self, request: Request, tokens: int, step: Step) -> None:
        super().chunk(request, tokens, step)
        adapter = self.adapters.of(request)
        if adapter != NONE:
            self.adapters.batch.chunk(adapter, tokens)

    def join(self, request: Request, left: int) -> None:
        super().join(request, left)
        adapter = self.adapters.of(request)
        if adapter != NONE:
            self.adapters.batch.join(adapter)

    def leave(self, request: Request) -> None:
        super().leave(request)
        adapter = self.adapters.of(request)
        if adapter != NONE:
            self.adapters.batch.leave(adapter)

    def release(self, request: Request) -> None:
        if request in self.running:  # else it was preempted with its last token on the way
            self.adapters.done(self.adapters.of(request))
        super().release(request)

    def detach(self, request: Request, step: Step, scheduled: int = 0) -> bool:
        goes_on = super().detach(request, step, scheduled)
        adapter = self.adapters.of(request)
        if goes_on:
            self.adapters.kept.add(adapter)  # it goes back to the head of the queue
        self.adapters.done(adapter)
        return goes_on


class Adapting(Vllm):
    """vLLM's steps with adapters."""

    def arrive(self, state: EngineState, request: Request) -> bool:
        adapters = cast("AdapterState", state).adapters
        cut = super().arrive(state, request)
        if not adapters.plan.paged:
            return cut or adapters.plan.merge is not None  # it counts when an adapter is chosen
        # Its adapter may be fetched from the next step on, even if it is not admitted.
        return cut or len(state.waiting) <= LOOKAHEAD

    def schedule(self, state: EngineState) -> Step | None:
        adapters = cast("AdapterState", state).adapters
        merge = adapters.plan.merge
        if adapters.plan.paged:
            self._fetch(state, adapters)
        elif merge is not None:
            changes = adapters.choose(merge, cast("AdapterQueue", state.waiting).counts, state.prefilling)
            if changes:
                adapters.waited_s += changes * merge.seconds
                state.batch_version += 1
        step = super().schedule(state)
        if merge is not None and merge.pauses:
            step = self._pause(state, adapters, merge, step)
        if adapters.waited_s and step is not None:
            step = Step(decodes=True) if step is DECODE else step
            step.extra_s += adapters.waited_s
            adapters.waited_s = 0.0
        if not adapters.ready:
            return step
        if step is None:  # nobody runs: wait for the first adapter
            step = Step(decodes=False)
            step.extra_s = max(min(adapters.ready.values()) - state.now, 1e-9)
            return step
        return Step(decodes=True) if step is DECODE else step  # look again at every step while adapters come

    @staticmethod
    def _pause(state: EngineState, adapters: Adapters, merge: MergePlan, step: Step | None) -> Step | None:
        """Leave out of a step who runs with other weights than those that are merged. Where that is everybody (memory
        is full of them, say), they are taken out."""
        others: list[Request] = []
        if adapters.batch.merged:
            others = [r for r in state.running if r.decoding and adapters.of(r) != adapters.chosen]
        adapters.paused = len(others)
        if not others or step is None:
            return step
        if step is DECODE:
            step = Step(decodes=True)
        held = list(dict.fromkeys([*step.held, *others]))
        if len(held) < state.num_decodes or step.chunks:
            step.held, step.decodes = held, len(held) < state.num_decodes
            return step
        adapters.waited_s += merge.seconds * adapters.take_out(cast("AdapterQueue", state.waiting).counts)
        adapters.owed = max(adapters.owed, 1)  # or it would be merged again at once
        adapters.paused = 0
        state.batch_version += 1
        return step

    @staticmethod
    def _fetch(state: EngineState, adapters: Adapters) -> None:
        queue = cast("AdapterQueue", state.waiting)
        adapters.fetch(state.now, queue.first(LOOKAHEAD), state.blocks_next)
        if state.running or not len(queue):
            return
        head = queue.first(1)[0]
        first = adapters.of(head)
        if (first == NONE or first in adapters.loaded) and state.pool.free >= state.blocks_of(head.target):
            return
        adapters.fetch(state.now, [head], 0)  # what was fetched for others would keep it out for ever


def adapting(policy: type[Policy]) -> type[Policy]:
    """``policy`` with adapters."""
    return cast("type[Policy]", type(f"Adapting{policy.__name__}", (Adapting, policy), {}))
