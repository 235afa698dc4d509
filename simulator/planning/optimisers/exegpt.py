"""ExeGPT's search for a schedule: the highest throughput within a bound on how long an answer takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from simulator.core.errors import UserError
from simulator.core.random import streams
from simulator.planning.ledger import Row
from simulator.planning.load import reason_of
from simulator.planning.optimisers.branch import best_within
from simulator.planning.optimisers.optimiser import OPTIMISERS, Candidate, Design, Optimiser, Question, Simulated
from simulator.planning.runs import WORKSHOP
from simulator.scenario.cluster import GroupSpec
from simulator.scenario.config import Scenario
from simulator.scenario.engine import EngineSpec
from simulator.scenario.run import run
from simulator.scenario.setup import Setup
from simulator.scenario.spec import Positive, PositiveSeconds, spec
from simulator.scenario.synthetic import AtOnce, Constant
from simulator.scenario.workload import Transform
from traces.trace import Floats, Trace

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)


@spec
class Options:
    """Of ``exegpt``."""

    gpus: Positive
    """GPUs to use, all of the scenario's kind."""
    latency_s: PositiveSeconds | None = None
    """Longest time that an answer of the 99th percentile of lengths may take once its prompt is begun; null: any."""
    strategies: Annotated[tuple[Literal["rra", "waa"], ...], Field(min_length=1)] = ("rra", "waa")
    """rra: all GPUs compute prompts and tokens in turns. waa: each on GPUs of their own."""
    sizes: Annotated[tuple[Positive, ...], Field(min_length=1)] = SIZES
    """Values of the batches and of the iterations between two phases of prompts, rising."""

    def __post_init__(self) -> None:
        if list(self.sizes) != sorted(set(self.sizes)):
            raise ValueError("'sizes' must rise.")


@dataclass(frozen=True)
class Lengths:
    """Of a load: mean prompt, mean context of a decoding iteration, and P(an answer takes at least i iterations after
    its first token) for i = 1, 2, ... . ``last``: iterations of an answer of the 99th percentile."""

    prompt: int
    context: float
    survive: Floats
    last: int

    @classmethod
    def of(cls, trace: Trace) -> Lengths:
        decodes = np.maximum(trace.output_tokens - 1, 0).astype(float)
        prompts = trace.prompt_tokens.astype(float)
        total = max(float(decodes.sum()), 1.0)
        context = float((decodes * (prompts + (decodes + 1.0) / 2.0)).sum()) / total
        several = np.sort(decodes)
        survive = 1.0 - np.searchsorted(several, np.arange(1, int(several[-1]) + 1), side="left") / len(several)
        last = int(np.quantile(decodes, 0.99, method="higher"))
        return cls(max(1, round(float(prompts.mean()))), context, survive, last)


@dataclass(frozen=True)
class Belief:
    """Of a schedule: requests/s, seconds of an answer of the 99th percentile, most requests at a time, and whether the
    KV cache has room for them."""

    rate: float
    latency_s: float
    batch: float
    fits: bool


Believe = Callable[[int, int], Belief]  # of the places of two settings
Columns = dict[str, Any]
Shape = tuple[int, int]  # tensor and pipeline parallel size


@OPTIMISERS.register("exegpt")
class ExeGpt(Optimiser[Options]):
    """The schedule of the highest throughput whose answers take no longer than a bound (ExeGPT's XScheduler).

    Decides: tensor and pipeline parallelism of ``gpus`` GPUs; for rra (engine policy ``exegpt``) the prompts per phase
    and the decoding iterations between phases; for waa the split of the GPUs between prompts and tokens and the batch
    of each side. One candidate per strategy and allocation: the best schedule there by branch and bound, because
    throughput and latency both rise with batches and with how often prompts are computed.
    Why it helps: small batches on many tensor-parallel GPUs answer fast, large ones yield more; where the bound
    lies between decides, and lengths of answers are known in distribution.
    Limits: it believes in the mean prompt and context and in a batch as large as lengths make it on average; nobody
    waits for slots, memory or transfers. Settings are those of ``sizes``; tensor parallelism is that of all GPUs of a
    side (the paper's may be of some). The load is simulated all at once (waa: at the
    rate believed in); throughput is that of the middle half of the answers, an answer's time p99 of E2E less queue.
    Reference: Oh et al., ExeGPT, ASPLOS 2024 (arXiv:2404.07947), sections 4 and 5.
    """

    quantity = "requests/s"
    Options = Options

    def search(self) -> Sequence[Candidate]:
        """Allocations by what they are believed to serve. Raises UserErrors of the scenario's load."""
        self.lengths = Lengths.of(self.question.trace())
        found, asked = [], self.options
        if "rra" in asked.strategies:
            found += [self._rra(tp, asked.gpus // tp) for tp in _divisors(asked.gpus)]
        if "waa" in asked.strategies:
            found += [
                self._waa(here, there) for first in range(1, asked.gpus)
                for here in _shapes(first) for there in _shapes(asked.gpus - first)
            ]  # fmt: skip
        found.sort(key=lambda one: (one.design is None, -one.belief))
        return found

    def simulate(self, candidates: Sequence[Candidate]) -> list[Simulated]:
        """Throughput, and the time that answers take."""
        return self.question.each(_served, [one.design for one in candidates if one.design is not None], "simulated")

    @property
    def goal(self) -> str:
        return "throughput, of those that keep the bound"

    def worth(self, candidate: Candidate, simulated: Simulated) -> float:
        """Throughput, where the bound is kept."""
        bound, taken = self.options.latency_s, simulated.columns["simulated_latency_s"]
        return simulated.value if bound is None or taken is None or taken <= bound else -math.inf

    def _rra(self, tp: int, pp: int) -> Candidate:
        base, sizes, steps = self.question.scenario, self.options.sizes, self.options.sizes[::-1]
        base = replace(base, cluster=replace(base.cluster, replicas=1, groups=()))
        engine = replace(base.engine, policy="exegpt", options={}, tensor_parallel_size=tp, pipeline_parallel_size=pp)

        def prices() -> Believe:
            (setup,) = WORKSHOP.groups(replace(base, engine=engine))
            known = Prices(setup, self.lengths)
            return lambda x, y: known.rra(sizes[x], steps[y])

        def chosen(x: int, y: int, belief: Belief) -> tuple[Scenario, Columns]:
            said = {"encode_batch": sizes[x] * pp, "decode_steps": steps[y]}
            seqs = math.ceil(belief.batch) + sizes[x] * pp
            return replace(base, engine=replace(engine, options={**said}, max_num_seqs=seqs)), {"tp": tp, **said}

        return self._best(f"rra, TP{tp} x PP{pp}", prices, chosen)

    def _waa(self, here: Shape, there: Shape) -> Candidate:
        base, sizes = self.question.scenario, self.options.sizes
        longest = int(self.question.trace().prompt_tokens.max())

        def cluster(encode: int, decode: int) -> Scenario:
            tokens = max(encode * self.lengths.prompt, longest)
            prompts = _engine(base, "vllm", here, max(2 * encode, 2 * here[1]), tokens)
            answers = _engine(base, "microbatches", there, decode * there[1], max(decode * there[1], 2048))
            groups = (
                GroupSpec(name="prompts", role="prefill", engine=prompts),
                GroupSpec(name="tokens", role="decode", engine=answers),
            )
            return replace(base, cluster=replace(base.cluster, replicas=1, groups=groups))

        def prices() -> Believe:
            prompts, tokens = (Prices(one, self.lengths) for one in WORKSHOP.groups(cluster(1, 1)))
            return lambda x, y: waa(prompts, tokens, sizes[x], sizes[y])

        def chosen(x: int, y: int, _: Belief) -> tuple[Scenario, Columns]:
            decode = sizes[y] * there[1]
            said = {"tp": there[0], "prompt_gpus": math.prod(here), "encode_batch": sizes[x], "decode_batch": decode}
            return cluster(sizes[x], sizes[y]), {**said}

        label = f"waa, prompts TP{here[0]} x PP{here[1]}, tokens TP{there[0]} x PP{there[1]}"
        return self._best(label, prices, chosen)

    def _best(
        self, label: str, prices: Callable[[], Believe], chosen: Callable[[int, int, Belief], tuple[Scenario, Columns]]
    ) -> Candidate:
        """The best schedule of one allocation."""
        bound = self.options.latency_s
        try:
            believe = prices()
        except UserError as error:
            return Candidate(label, reason=reason_of(error))

        def judge(x: int, y: int) -> tuple[float, bool]:
            one = believe(x, y)
            return one.rate, one.fits and (bound is None or one.latency_s <= bound)

        size = len(self.options.sizes)
        best, judged = best_within(judge, size, size)
        if best is None:
            why = "does not fit" if not believe(0, 0).fits else f"takes {believe(0, 0).latency_s:.3g} s at the least"
            return Candidate(label, reason=f"an answer of the 99th percentile {why}.")
        belief = believe(*best.at)
        scenario, said = chosen(*best.at, belief)
        # Prompts on GPUs of their own are paced to what the others take, or KV piles up between them.
        split = bool(scenario.cluster.groups)
        arrivals = Constant(process="constant", rate=belief.rate) if split else AtOnce(process="at_once")
        load = scenario.workload
        paced = replace(load, transforms=(*load.transforms, Transform(arrivals=arrivals)))
        whole = replace(scenario, workload=paced)
        columns = {**said, "latency_s": belief.latency_s, "batch": belief.batch, "judged": judged}
        requests = self.question.requests
        if requests is not None:
            times = arrivals.build().times(len(requests), streams(self.question.seeds[0]).stream("planning.exegpt"))
            requests = replace(requests, arrival=times)
        return Candidate(label, belief.rate, columns, Design(whole, requests))


class Prices:
    """Steps of one side's engine, by how many requests take part in a batch on the way."""

    def __init__(self, setup: Setup, lengths: Lengths) -> None:
        self.setup, self.lengths, self.lanes = setup, lengths, setup.args.pipeline_parallel_size
        size = setup.args.block_size
        self.blocks = setup.num_gpu_blocks - 1
        self.longest = -(-setup.args.max_model_len // size)  # blocks that are reserved
        self.mean = lengths.context / size  # blocks of a request that decodes
        self.prompt_s = cache(self._prompt_s)
        self.token_s = cache(self._token_s)

    def _prompt_s(self, several: int) -> float:
        """Seconds of a stage for the prompts of so many requests."""
        return self.setup.cost.mixed(0, 0, 0, [(self.lengths.prompt, 0)] * several, several)

    def _token_s(self, batch: int) -> float:
        """Seconds of a stage for a decoding iteration of so many requests."""
        cost, context = self.setup.cost, round(batch * self.lengths.context)
        window = cost.sliding_window
        return cost.decode(batch, context, 0 if window is None else min(context, batch * window), 0).first

    def rra(self, encode: int, steps: int) -> Belief:
        """Phases of ``encode`` prompts per batch on the way, with ``steps`` iterations between them.

        In the i-th iteration of a phase those take part who came k phases ago and still decode:
        ``encode x sum over k of P(iterations >= k steps + i)``.
        """
        survive = self.lengths.survive
        padded = np.zeros(-(-len(survive) // steps) * steps)
        padded[: len(survive)] = survive
        batches = encode * padded.reshape(-1, steps).sum(axis=0)
        seconds = [self.token_s(max(1, round(float(batch)))) if batch > 0 else 0.0 for batch in batches]
        prompts = self.prompt_s(encode)
        rate = encode / (prompts + sum(seconds))  # a stage is never idle
        whole, rest = divmod(self.lengths.last, steps)
        meets = max(whole - (rest == 0), 0)  # phases of others, after its own
        latency = self.lanes * (prompts * (1 + meets) + whole * sum(seconds) + sum(seconds[:rest]))
        most = float(batches.max(initial=0.0)) * self.lanes + encode * self.lanes
        return Belief(rate, latency, most, most * self.longest <= self.blocks)


def waa(prompts: Prices, tokens: Prices, encode: int, decode: int) -> Belief:
    """Batches of ``encode`` prompts on some GPUs, and of ``decode`` requests (per batch on the way) on the others."""
    lengths = tokens.lengths
    iterations = max(float(lengths.survive.sum()), 1e-9)  # of an answer, on average
    rate = min(encode / prompts.prompt_s(encode), decode / (iterations * tokens.token_s(decode)))
    latency = prompts.lanes * prompts.prompt_s(encode) + lengths.last * tokens.lanes * tokens.token_s(decode)
    batch = float(decode * tokens.lanes)
    return Belief(rate, latency, batch, batch * tokens.mean <= tokens.blocks)


def _engine(base: Scenario, policy: str, shape: Shape, seqs: int, tokens: int) -> EngineSpec:
    return replace(
        base.engine, policy=policy, options={}, tensor_parallel_size=shape[0], pipeline_parallel_size=shape[1],
        max_num_seqs=seqs, max_num_batched_tokens=tokens,
    )  # fmt: skip


def _divisors(n: int) -> list[int]:
    return [k for k in range(n, 0, -1) if n % k == 0]


def _shapes(n: int) -> list[Shape]:
    """Tensor and pipeline parallel sizes of so many GPUs."""
    return [(tp, n // tp) for tp in _divisors(n)]


def _served(task: tuple[Question, Design]) -> Simulated:
    """Requests/s of the middle half of the answers, and p99 of the seconds that one takes once it is begun."""
    question, design = task

    def make(seed: int) -> Row:
        found = run(design.scenario, seed, trace=design.requests)
        latency = found.analysis.latency
        taken = latency.e2e - latency.queue
        finish = found.records.requests.finish
        ended = finish[np.isfinite(finish)]  # who was rejected is not served
        earlier, later = np.percentile(ended, (25, 75)) if len(ended) else (0.0, math.inf)
        return {
            "request_per_s": float(len(ended) / 2.0 / max(later - earlier, 1e-12)),
            "latency_s": float(np.nanpercentile(taken, 99)) if np.isfinite(taken).any() else None,
        }

    try:
        rows = [
            question.once("exegpt", design, seed, lambda seed=seed: make(seed))  # type: ignore[misc]
            for seed in question.seeds_of(design)
        ]
    except UserError as error:
        return Simulated.refused(error)
    taken = [row["latency_s"] for row in rows if row["latency_s"] is not None]
    more = {"simulated_latency_s": sum(taken) / len(taken) if taken else None}
    return Simulated.of([row["request_per_s"] for row in rows], question.confidence, more)
