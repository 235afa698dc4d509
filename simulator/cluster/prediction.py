"""What routers and admission control may know of speed: the replicas' cost models as straight lines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import cast

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.plan import Group
from simulator.cost.wave import Batch, wave_cost
from simulator.routing import Fleet
from simulator.scheduling.request import Request
from simulator.scheduling.state import EngineState

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
BUDGET = 8192  # tokens a step, where the engine has no limit
POINTS = 33  # prompt lengths at which a group is priced


class LinearPredictor:
    """``Predictor`` for routers: TTFT is the time of the prompts ahead, of the prompt itself, and of the decodes that
    share those steps.

    The prompts ahead take full steps; the prompt's own time is interpolated between prompts of other lengths, chunk by
    chunk; a decode adds to each step what its share of the batch and its context cost. Waiting for KV blocks or for one
    of ``max_num_seqs`` is left out, as is what is left of the step in flight: a router cannot see them.
    """

    def __init__(self, groups: Sequence[Group], member: Sequence[int]) -> None:
        """member: group of each replica. Nothing is priced until somebody asks."""
        self._groups = groups
        self._member = np.asarray(member, dtype=np.int64)
        self._replicas = np.arange(len(member))

    def _each(self, of_group: Callable[[Group], float]) -> Floats:
        """(replicas,) from one number per group."""
        found: Floats = np.array([of_group(group) for group in self._groups], dtype=np.float64)[self._member]
        return found

    @cached_property
    def seconds_per_prompt_token(self) -> Floats:
        return self._each(_per_token)

    @cached_property
    def seconds_per_context_token(self) -> Floats:
        return self._each(lambda group: _decode_lines(group)[1])

    @cached_property
    def _seconds_per_decode(self) -> Floats:
        return self._each(lambda group: _decode_lines(group)[0])

    @cached_property
    def _budget(self) -> Floats:
        return self._each(lambda group: _budget(group) * group.args.data_parallel_size)

    @cached_property
    def _block_size(self) -> Floats:
        return self._each(lambda group: group.args.block_size)

    @cached_property
    def _curves(self) -> list[tuple[Floats, Floats]]:
        return [_prompt_curve(group) for group in self._groups]

    def ttft(self, fleet: Fleet, prompt_tokens: int | Ints) -> Floats:
        """(replicas,) s; one vectorised pass."""
        ahead = fleet.queued_tokens
        tokens = np.broadcast_to(np.asarray(prompt_tokens, dtype=np.float64), len(ahead))
        if len(self._curves) == 1:
            own = np.interp(tokens, *self._curves[0])
        else:
            own = np.stack([np.interp(tokens, *curve) for curve in self._curves])[self._member, self._replicas]
        context = (fleet.num_blocks - fleet.free_blocks) * self._block_size
        shared = self._seconds_per_decode * fleet.running + self.seconds_per_context_token * context
        steps = np.ceil((ahead + tokens) / self._budget)
        found: Floats = ahead * self.seconds_per_prompt_token + own + steps * shared
        return found


def _budget(group: Group) -> int:
    """Tokens of a step on one rank."""
    return min(group.args.max_num_batched_tokens, BUDGET)


def _per_token(group: Group) -> float:
    """Of a queue that all data-parallel ranks work on."""
    budget = _budget(group)
    return group.cost.mixed(0, 0, 0, [(budget, 0)], 1) / (budget * group.args.data_parallel_size)


def _prompt_curve(group: Group) -> tuple[Floats, Floats]:
    """Prompt lengths (tokens) and how long such a prompt takes alone, in chunks of the token budget, s."""
    budget, wave = _budget(group), wave_cost(group.cost)
    others = [Batch()] * (group.args.data_parallel_size - 1)

    def step(chunk: tuple[int, int]) -> float:
        if not others:
            return group.cost.mixed(0, 0, 0, [chunk], 1)
        return wave.mixed([Batch(chunks=[chunk], num_sampled=1), *others], balanced=True)

    lengths = np.unique(np.geomspace(1, 32 * budget, POINTS).astype(np.int64))
    seconds = []
    for length in lengths.tolist():
        chunks = [(min(budget, length - done), done) for done in range(0, length, budget)]
        seconds.append(sum(step(chunk) for chunk in chunks))
    return lengths.astype(np.float64), np.array(seconds)


def _decode_lines(group: Group) -> tuple[float, float]:
    """Seconds that one more decode, and one more token of context, add to a step with prompts in it."""
    chunk = [(512, 0)]

    def step(decodes: int, context: int) -> float:
        windowed = min(context, decodes * (group.cost.sliding_window or 0))
        return group.cost.mixed(decodes, context, windowed, chunk, decodes + 1)

    per_context = max((step(32, 64_000) - step(32, 32_000)) / 32_000, 0.0)
    per_decode = max((step(32, 32_000) - step(0, 0) - 32_000 * per_context) / 32, 0.0)
    ranks = group.args.data_parallel_size  # each has its share of them
    return per_decode / ranks, per_context / ranks


def queued_tokens(state: EngineState) -> int:
    """Prompt tokens still to compute on an engine, of waiting and of running requests."""
    waiting = cast("Iterable[Request]", state.waiting)
    return sum(r.target - r.computed for r in waiting) + sum(r.target - r.computed for r in state.prefilling)
