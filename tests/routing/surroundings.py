"""Routers on their own: a fleet without a cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from simulator.kv.prefix import BlockTable
from simulator.routing import ROUTERS, Fleet, Router, Surroundings
from simulator.routing.fleet import Floats, Ints
from simulator.routing.prefix_index import PrefixIndex
from simulator.scheduling.request import Request
from traces.trace import Trace


class Speeds:
    """A predictor whose replicas compute so many prompt tokens a second, and read context for free."""

    def __init__(self, tokens_per_s: Sequence[float]) -> None:
        self.seconds_per_prompt_token: Floats = 1 / np.asarray(tokens_per_s, dtype=np.float64)
        self.seconds_per_context_token: Floats = self.seconds_per_prompt_token / 10

    def ttft(self, fleet: Fleet, prompt_tokens: int | Ints) -> Floats:
        found: Floats = (fleet.queued_tokens + prompt_tokens) * self.seconds_per_prompt_token
        return found


def requests(n: int, **columns: Any) -> Trace:
    """Requests of 100 prompt and 10 output tokens, one a second, unless columns say otherwise."""
    plain = {"arrival": np.arange(n), "prompt_tokens": np.full(n, 100), "output_tokens": np.full(n, 10)}
    return Trace(**(plain | columns))


def build(
    name: str,
    trace: Trace,
    size: int,
    *,
    weight: Sequence[float] | None = None,
    watts: Sequence[float] | None = None,
    blocks: PrefixIndex | None = None,
    speeds: Sequence[float] | None = None,
    seed: int = 0,
    **options: Any,
) -> tuple[Router, Fleet]:
    """A router and the fleet it looks at: replicas of 1,000 blocks."""
    fleet = Fleet(size, weight=weight or [1.0] * size, num_blocks=[1000] * size, watts=watts)
    predict = Speeds(speeds or [1000.0] * size)
    around = Surroundings(fleet, trace, np.random.default_rng(seed), blocks or PrefixIndex(), 16, predict)
    return ROUTERS.get(name)(around, options), fleet


def send(
    router: Router, fleet: Fleet, row: int, trace: Trace, *, ids: Sequence[int] = (), closed: Sequence[int] = ()
) -> int:
    """Route a row and count it, as the dispatcher does."""
    request = Request(
        row, 0.0, int(trace.prompt_tokens[row]), int(trace.output_tokens[row]), table=BlockTable(list(ids))
    )
    chosen = router.route(request, np.setdiff1d(np.arange(fleet.size), np.asarray(closed, dtype=np.int64)), 0.0)
    fleet.sent(chosen, request.prompt_tokens)
    return chosen


def end(router: Router, fleet: Fleet, row: int, replica: int, trace: Trace) -> None:
    """A routed row has ended."""
    prompt, output = int(trace.prompt_tokens[row]), int(trace.output_tokens[row])
    fleet.ended(replica, prompt)
    router.ended(Request(row, 0.0, prompt, output), replica)
