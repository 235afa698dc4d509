"""What no load can beat, from the prices of steps alone: latency floors, and the highest rate a design could carry.

Bounds must hold: they throw designs out unseen. Each follows from two properties of the prices: a step never gets
cheaper when tokens, contexts or sequences are added to it, and the time of decode steps is linear in the context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simulator.cost.interface import StepCost
from simulator.metrics.slo import Slo
from simulator.metrics.stats import Floats
from simulator.scenario.config import Scenario
from simulator.scenario.setup import Setup
from traces.trace import Trace

SLACK = 0.995  # of every bound, for interpolation between tabulated prices
PIECE = 64  # tokens: prompts so short that their attention hardly counts
QUANTILES = 200
BUDGETED = ("vllm", "vllm-v0", "sarathi", "fastgen")  # policies that never exceed the token budget


@dataclass(frozen=True)
class Floor:
    """A latency (s) that a request of the SLO's percentile has in an empty system, and its limit."""

    name: str
    floor_s: float
    limit_s: float

    @property
    def possible(self) -> bool:
        return self.floor_s <= self.limit_s


@dataclass(frozen=True)
class Load:
    """What a trace asks, per request."""

    prompt: Floats  # quantiles, tokens
    output: Floats
    mean_prompt: float  # tokens that must be computed: 0 where a cache may hold them
    mean_decodes: float  # output tokens after the first
    mean_context: float  # of a decoded token
    decoding: Floats  # prompt quantiles of requests that decode at all


def load_of(trace: Trace, *, prefixes_cached: bool) -> Load:
    """prefixes_cached: prompts may be found in the cache, so that nothing is sure of their computation."""
    prompt, output = trace.prompt_tokens.astype(float), trace.output_tokens.astype(float)
    q = np.linspace(0.0, 1.0, QUANTILES)
    decodes = np.maximum(output - 1.0, 0.0)
    total = float(decodes.sum())
    context = float((decodes * (prompt + 1.0 + decodes / 2.0)).sum()) / total if total else 0.0
    several = prompt[output > 1]
    return Load(
        np.quantile(prompt, q),
        np.quantile(output, q),
        0.0 if prefixes_cached else float(prompt.mean()),
        float(decodes.mean()),
        context,
        np.quantile(several, q) if len(several) else np.zeros(0),
    )


def load_for(setup: Setup, trace: Trace) -> Load:
    cached = bool(setup.args.enable_prefix_caching) and trace.prefix is not None
    return load_of(trace, prefixes_cached=cached)


def floors(setups: Sequence[Setup], roles: Sequence[str], trace: Trace, slo: Slo) -> list[Floor]:
    """TTFT and TPOT of a request alone on the fastest group that may serve it, at the SLO's percentile."""
    found = []
    share = slo.percentile / 100.0
    load = load_for(setups[0], trace)
    if slo.ttft_s is not None and load.mean_prompt:
        longest = float(np.quantile(trace.prompt_tokens, share, method="lower"))
        alone = min(prefill_s(s, int(longest)) for s, role in zip(setups, roles, strict=True) if role != "decode")
        found.append(Floor("TTFT", SLACK * alone, slo.ttft_s))
    if slo.tpot_s is not None and len(load.decoding):
        several = trace.prompt_tokens[trace.output_tokens > 1]
        context = int(np.quantile(several, share, method="lower"))
        alone = min(decode_s(s, 1, context + 1) for s, role in zip(setups, roles, strict=True) if role != "prefill")
        found.append(Floor("TPOT", SLACK * alone, slo.tpot_s))
    return found


def prefill_s(setup: Setup, tokens: int) -> float:
    """A prompt alone, in as few steps as the token budget allows, or in one where that is cheaper."""
    budget = setup.args.max_num_batched_tokens
    stages = setup.args.pipeline_parallel_size
    whole = setup.cost.mixed(0, 0, 0, [(tokens, 0)], 1)
    if tokens <= budget:
        return whole * stages
    chunks = [(min(budget, tokens - done), done) for done in range(0, tokens, budget)]
    cut = sum(setup.cost.mixed(0, 0, 0, [chunk], 1) for chunk in chunks[:-1])
    last = setup.cost.mixed(0, 0, 0, [chunks[-1]], 1) * stages
    return min(whole * stages, cut + last)


def decode_s(setup: Setup, batch: int, context_each: float) -> float:
    """Least seconds between tokens of equal requests. Sliding windows are taken as full, or shorter where the context
    is; with speculation every draft is accepted and costs nothing; where prefixes are read once, all is one prefix."""
    cost, drafts = setup.cost, 0 if setup.args.speculation is None else setup.args.speculation.num_speculative_tokens
    if setup.args.shared_prefix_attention != "none":
        context_each /= batch
    window = cost.sliding_window
    seen = context_each if window is None else min(context_each, window)
    step = cost.decode(batch, round(batch * context_each), round(batch * seen) if window else 0, 0).first
    return step / (1 + drafts)


def highest_rate(setups: Sequence[Setup], roles: Sequence[str], trace: Trace) -> float:
    """Requests per second that all groups together cannot exceed, however well they batch."""
    both = prefill = decode = 0.0
    split = any(role != "both" for role in roles)
    for setup, role in zip(setups, roles, strict=True):
        per_prompt, per_answer = seconds_per_request(setup, load_for(setup, trace))
        count = setup.replicas
        both += count / max(per_prompt, per_answer, 1e-12) if role == "both" else 0.0
        prefill += count / max(per_prompt, 1e-12) if role == "prefill" else 0.0
        decode += count / max(per_answer, 1e-12) if role == "decode" else 0.0
    return (both + (min(prefill, decode) if split else 0.0)) / SLACK


def seconds_per_request(setup: Setup, load: Load) -> tuple[float, float]:
    """Least seconds of a replica for the prompt, and for the decodes, of the mean request.

    They may overlap, in steps that hold both, so that their larger one is the bound, not their sum.
    """
    cost, args = setup.cost, setup.args
    ranks = setup.cost.placed.dp
    sizes = {max(1, args.max_num_batched_tokens >> k) for k in range(5)}
    if args.policy not in BUDGETED:
        sizes |= {args.max_num_batched_tokens << k for k in range(1, 5)}
    per_token = min(_packed_s(cost, size) / size for size in sizes) / ranks
    return load.mean_prompt * per_token, load.mean_decodes * _per_decode_s(setup, load) / ranks


def _packed_s(cost: StepCost, tokens: int) -> float:
    """A step of ``tokens`` prompt tokens in pieces, or as one chunk where that is cheaper."""
    pieces = [(PIECE, 0)] * (tokens // PIECE) + ([(tokens % PIECE, 0)] if tokens % PIECE else [])
    return min(cost.mixed(0, 0, 0, pieces, 1), cost.mixed(0, 0, 0, [(tokens, 0)], 1))


def _per_decode_s(setup: Setup, load: Load) -> float:
    """Least seconds per decoded token: batches up to the slots, and to what the KV cache holds of the mean context (any
    number, where requests may share its blocks)."""
    most = float(setup.args.max_num_seqs)
    if load.mean_context > 0 and load.mean_prompt:
        tokens = setup.num_gpu_blocks * setup.args.block_size * setup.cost.placed.dp
        if setup.cost.sliding_window is None:
            most = min(most, max(1.0, tokens / load.mean_context))
    batches = {max(1, int(most)), *(max(1, int(most) >> k) for k in range(1, 9))}
    return min(decode_s(setup, batch, load.mean_context) / batch for batch in batches)


def likely_rate(setups: Sequence[Setup], roles: Sequence[str], trace: Trace, slo: Slo) -> float:
    """A guess of what the design carries, to start a search from: prefills and decodes one after the other, in batches
    that keep half of the TPOT limit for decode steps."""
    total = 0.0
    for setup, role in zip(setups, roles, strict=True):
        load = load_for(setup, trace)
        per_prompt, per_answer = seconds_per_request(setup, load)
        if slo.tpot_s is not None and load.mean_decodes:
            batch = 1
            while batch < setup.args.max_num_seqs and decode_s(setup, 2 * batch, load.mean_context) < slo.tpot_s / 2:
                batch *= 2
            per_answer = max(per_answer, load.mean_decodes * decode_s(setup, batch, load.mean_context) / batch)
        need = {"both": per_prompt + per_answer, "prefill": 2 * per_prompt, "decode": 2 * per_answer}[role]
        total += setup.replicas / max(need, 1e-12)
    return 0.9 * total


def roles_of(scenario: Scenario) -> tuple[str, ...]:
    """Of every group."""
    return tuple(group.role for group in scenario.cluster.groups) or ("both",)
