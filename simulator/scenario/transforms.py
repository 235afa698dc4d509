"""Each field of ``workload.transforms`` and the function of ``traces`` that does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from simulator.core.random import Streams
from simulator.scenario.workload import Transform
from traces import adapters, answers, models, programs, tenants, transforms
from traces.trace import Trace

Change = Callable[[Trace, Any, np.random.Generator], Trace]  # (trace, the field's value, random draws)

CHANGES: Mapping[str, Change] = {
    "scale_rate": lambda trace, factor, _: transforms.scale_rate(trace, factor),
    "to_rate": lambda trace, rate, _: transforms.to_rate(trace, rate),
    "arrivals": lambda trace, arrivals, rng: transforms.with_arrivals(trace, arrivals.build(), rng),
    "window": lambda trace, window, _: transforms.window(trace, window.start_s, window.end_s),
    "sample": lambda trace, fraction, rng: transforms.sample(trace, fraction, rng),
    "repeat": lambda trace, times, _: transforms.repeat(trace, times),
    "copies": lambda trace, each, _: transforms.copies(trace, each),
    "clip": lambda trace, limits, _: transforms.clip_lengths(
        trace, max_prompt_tokens=limits.max_prompt_tokens, max_output_tokens=limits.max_output_tokens
    ),
    "head": lambda trace, n, _: trace.head(n),
    "cascade": lambda trace, chain, rng: models.cascade(trace, chain.models, chain.stop, rng, scorer_s=chain.scorer_s),
    "choose_model": lambda trace, choice, rng: models.choose_model(
        trace, choice.strong, choice.weak, choice.strong_share, rng
    ),
    "chain": lambda trace, given, _: programs.chain(trace, **asdict(given)),
    "map_reduce": lambda trace, given, _: programs.map_reduce(trace, **asdict(given)),
    "branches": lambda trace, given, rng: programs.branches(trace, rng, **asdict(given)),
    "tenants": lambda trace, asked, rng: tenants.with_tenants(trace, asked.count, rng, zipf=asked.zipf),
    "adapters": lambda trace, asked, rng: adapters.with_adapters(
        trace, asked.count, rng, zipf=asked.zipf, in_turn=asked.in_turn, merged=asked.merged
    ),
    "answers": lambda trace, _, __: answers.with_answers(trace),
    "cache_salt": lambda trace, by, _: tenants.salted(trace, by),
}


def transformed(trace: Trace, step: Transform, rng: Streams, index: int) -> Trace:
    """Apply the one field that is set. index: of the transform; each has random draws of its own."""
    name = next(f.name for f in fields(step) if getattr(step, f.name) is not None)
    return CHANGES[name](trace, getattr(step, name), rng.stream(f"transforms.{index}.{name}"))
