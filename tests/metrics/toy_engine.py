"""A brute-force engine that writes down every token of every request, and the records that must tell the same.

One step at a time, plain lists, first come first served, chunked prefill with decodes first, recompute after
preemption. Step times are multiples of 2**-20 s, so sums are exact in floating point and tests may ask for equality.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from simulator.replica.records import RequestRecords, SimulationRecords, Status, StepRecords
from traces.trace import Trace

TICK = 2.0**-20  # s
NAN = float("nan")


@dataclass
class ToyRequest:
    index: int
    arrival: float
    prompt: int
    output: int
    cached: int = 0
    scheduled: float = NAN
    tokens: list[float] = field(default_factory=list)  # the time of every output token
    finish: float = NAN
    computed: int = 0
    prefilling: bool = True
    preemptions: int = 0
    status: Status = Status.IN_FLIGHT
    replica: int = -1
    range: list[float] | None = None  # [first, last, start]
    extra: list[tuple[int, float, float, float, int]] = field(default_factory=list)

    @property
    def length(self) -> int:
        return self.prompt + len(self.tokens)


class ToyStep(NamedTuple):
    replica: int
    start: float
    seconds: float
    decodes: tuple[int, ...]
    prefills: tuple[int, ...]
    token_step: int
    prefill_tokens: int
    context: int
    waiting: int
    running: int
    free: int
    preempted: int


@dataclass(frozen=True)
class ToyConfig:
    max_num_seqs: int = 4
    max_num_batched_tokens: int = 64
    num_gpu_blocks: int = 64  # usable; records count the null block on top, as vLLM does
    block_size: int = 4
    base: float = 2.0**-6  # s per step
    per_prefill_token: float = 2.0**-12
    per_context_token: float = TICK
    horizon: float = float("inf")


@dataclass
class ToyRun:
    records: SimulationRecords
    trace: Trace
    requests: list[ToyRequest]
    steps: list[ToyStep]

    def gaps(self, chosen: list[ToyRequest] | None = None) -> list[float]:
        """Every ITL, token by token."""
        return [
            b - a
            for r in (self.requests if chosen is None else chosen)
            for a, b in zip(r.tokens, r.tokens[1:], strict=False)
        ]

    def finished(self) -> list[ToyRequest]:
        return [r for r in self.requests if r.status == Status.FINISHED]


class _Replica:
    def __init__(self, index: int, config: ToyConfig, todo: list[ToyRequest]) -> None:
        self.index, self.config, self.todo = index, config, sorted(todo, key=lambda r: r.arrival)
        self.waiting: list[ToyRequest] = []
        self.running: list[ToyRequest] = []
        self.steps: list[ToyStep] = []
        self.now = 0.0
        self.token_steps = 0
        self.recomputed = 0

    def free(self, reserved: dict[int, int]) -> int:
        size = self.config.block_size
        return self.config.num_gpu_blocks - sum(
            -(-(r.computed + reserved.get(r.index, 0)) // size) for r in self.running
        )

    def preempt_last(self) -> ToyRequest:
        victim = self.running.pop()
        self.recomputed += victim.computed
        victim.computed, victim.prefilling = 0, True
        victim.preemptions += 1
        self.waiting.insert(0, victim)
        return victim

    def plan(self) -> tuple[dict[int, int], int]:
        budget, preempted, plan = self.config.max_num_batched_tokens, 0, {}
        for r in sorted(self.running, key=lambda r: r.prefilling):  # decodes first
            if r not in self.running:
                continue
            n = min(r.length - r.computed, budget)
            plan[r.index] = n
            while n and r in self.running and self.free(plan) < 0:
                victim = self.preempt_last()
                budget += plan.pop(victim.index, 0)
                preempted += 1
            if r in self.running:
                budget -= n
        while self.waiting and not preempted and budget and len(self.running) < self.config.max_num_seqs:
            r = self.waiting[0]
            cached = r.cached if not r.preemptions else 0
            n = min(r.length - cached, budget)
            self.running.append(r)
            r.computed = cached
            if self.free(plan | {r.index: n}) < 0:
                self.running.pop()
                r.computed = 0
                break
            plan[self.waiting.pop(0).index] = n
            r.replica = self.index
            if np.isnan(r.scheduled):
                r.scheduled = self.now
            budget -= n
        return {k: n for k, n in plan.items() if n}, preempted

    def run(self) -> None:
        while self.todo or self.waiting or self.running:
            while self.todo and self.todo[0].arrival <= self.now:
                self.waiting.append(self.todo.pop(0))
            if not self.waiting and not self.running:
                self.now = self.todo[0].arrival
                continue
            plan, preempted = self.plan()
            assert plan, "the toy engine is stuck"
            batch = [r for r in self.running if r.index in plan]
            decodes = [r for r in batch if not r.prefilling]
            prefills = [r for r in batch if r.prefilling]
            context = sum(r.length for r in decodes)
            tokens = sum(plan[r.index] for r in prefills)
            c = self.config
            seconds = c.base + c.per_context_token * context + c.per_prefill_token * tokens
            if self.now + seconds > c.horizon:
                return
            free = self.free(plan)
            self.steps.append(
                ToyStep(
                    self.index, self.now, seconds, tuple(r.index for r in decodes), tuple(r.index for r in prefills),
                    self.token_steps, tokens, context, len(self.waiting), len(self.running), free, preempted,
                )
            )  # fmt: skip
            self.now += seconds
            self.apply(plan, batch, bool(decodes))

    def apply(self, plan: dict[int, int], batch: list[ToyRequest], has_decodes: bool) -> None:
        self.token_steps += has_decodes
        for r in batch:
            r.computed += plan[r.index]
            if r.computed < r.length:
                continue
            r.tokens.append(self.now)
            if r.prefilling:
                if r.range is not None:
                    first, last, start = r.range
                    r.extra.append((r.index, first, last, start, self.index))
                r.prefilling, r.range = False, [self.token_steps, self.token_steps, self.now]
            else:
                assert r.range is not None
                assert r.range[1] == self.token_steps - 1, "a decode skipped a token step"
                r.range[1] = self.token_steps
            if len(r.tokens) == r.output:
                r.finish, r.status = self.now, Status.FINISHED
                self.running.remove(r)


def run_toy(
    requests: list[ToyRequest], config: ToyConfig | None = None, *, replicas: int = 1, reject: tuple[int, ...] = ()
) -> ToyRun:
    """Round-robin over replicas; requests in ``reject`` are refused on arrival."""
    config = config or ToyConfig()
    served = [r for r in requests if r.index not in reject]
    engines = [_Replica(k, config, served[k::replicas]) for k in range(replicas)]
    for engine in engines:
        engine.run()
    for index in reject:
        requests[index].status = Status.REJECTED
    steps = [s for engine in engines for s in engine.steps]
    end = max([s.start + s.seconds for s in steps] + [r.arrival for r in requests] + [0.0])
    if config.horizon < float("inf"):
        end = config.horizon
    records = SimulationRecords(
        requests=_request_records(requests),
        steps=_spans(steps),
        end=end,
        num_gpu_blocks=(config.num_gpu_blocks + 1,) * replicas,
        block_size=config.block_size,
        num_events=len(steps),
        tokens_recomputed=sum(engine.recomputed for engine in engines),
    )
    trace = Trace(
        arrival=np.array([r.arrival for r in requests], dtype=np.float64),
        prompt_tokens=np.array([r.prompt for r in requests], dtype=np.int64),
        output_tokens=np.array([r.output for r in requests], dtype=np.int64),
    )
    return ToyRun(records, trace, requests, steps)


def _request_records(requests: list[ToyRequest]) -> RequestRecords:
    def ints(values: list[int]) -> np.ndarray:
        return np.array(values, dtype=np.int64)

    def floats(values: list[float]) -> np.ndarray:
        return np.array(values, dtype=np.float64)

    extra = [row for r in requests for row in r.extra]
    return RequestRecords(
        arrival=floats([r.arrival for r in requests]),
        scheduled=floats([r.scheduled for r in requests]),
        first_token=floats([r.tokens[0] if r.tokens else NAN for r in requests]),
        finish=floats([r.finish for r in requests]),
        prompt_tokens=ints([r.prompt for r in requests]),
        output_tokens=ints([r.output for r in requests]),
        cached_tokens=ints([r.cached if not np.isnan(r.scheduled) else 0 for r in requests]),
        preemptions=ints([r.preemptions for r in requests]),
        status=ints([r.status for r in requests]),
        replica=ints([r.replica for r in requests]),
        first_token_step=ints([int(r.range[0]) if r.range else -1 for r in requests]),
        last_token_step=ints([int(r.range[1]) if r.range else -1 for r in requests]),
        extra_ranges=np.array(extra, dtype=np.float64).reshape(-1, 5),
        range_start=floats([r.range[2] if r.range else NAN for r in requests]),
    )


def _spans(steps: list[ToyStep]) -> StepRecords:
    """Merge back-to-back decode steps of one batch whose durations grow evenly, as the engine's spans do."""
    rows: list[list[ToyStep]] = []
    for s in steps:
        previous = rows[-1] if rows else None
        if previous and _continues(previous, s):
            previous.append(s)
        else:
            rows.append([s])
    first = [row[0] for row in rows]

    def ints(values: list[int]) -> np.ndarray:
        return np.array(values, dtype=np.int64)

    return StepRecords(
        replica=ints([s.replica for s in first]),
        start=np.array([s.start for s in first], dtype=np.float64),
        step=np.array([s.seconds for s in first], dtype=np.float64),
        increment=np.array(
            [row[1].seconds - row[0].seconds if len(row) > 1 else 0.0 for row in rows], dtype=np.float64
        ),
        num_steps=ints([len(row) for row in rows]),
        num_decodes=ints([len(s.decodes) for s in first]),
        first_token_step=ints([s.token_step for s in first]),
        prefill_tokens=ints([s.prefill_tokens for s in first]),
        num_prefills=ints([len(s.prefills) for s in first]),
        context_tokens=np.array([s.context for s in first], dtype=np.float64),
        num_waiting=ints([s.waiting for s in first]),
        num_running=ints([s.running for s in first]),
        free_blocks=ints([row[-1].free for row in rows]),
        preempted=ints([s.preempted for s in first]),
    )


def _continues(row: list[ToyStep], s: ToyStep) -> bool:
    last = row[-1]
    even = len(row) == 1 or s.seconds - last.seconds == row[1].seconds - row[0].seconds
    same = s.replica == last.replica and s.decodes == last.decodes and s.start == last.start + last.seconds
    quiet = not (s.prefills or last.prefills or s.preempted or s.running != last.running)
    return even and same and quiet


def random_requests(
    seed: int, count: int, *, rate: float = 4.0, prompt: tuple[int, int] = (1, 60), output: tuple[int, int] = (1, 50)
) -> list[ToyRequest]:
    """Poisson arrivals on a grid of ticks; a third of the prompts have some tokens cached."""
    rng = random.Random(seed)
    now, out = 0.0, []
    for index in range(count):
        now += round(rng.expovariate(rate) / TICK) * TICK
        length = rng.randint(*prompt)
        cached = rng.randrange(length) if rng.random() < 1 / 3 else 0
        out.append(ToyRequest(index, now, length, rng.randint(*output), cached))
    return out
