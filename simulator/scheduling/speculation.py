"""Speculative decoding inside an engine: what a step verifies, what it accepts, and a batch whose future is known.

A *draft* of ``k`` tokens is verified in one step, which makes one token more than it accepts. What is accepted is drawn
by request and position, so it does not depend on who else runs: the tokens that a request makes in each of its coming
steps are known when it joins the batch. The batch keeps the sum of those futures (tokens, KV blocks), so a step still
costs the same for 1 and 1,000 requests, and the end of each request is known in steps, as without speculation.

Reference: Leviathan, Kalman, Matias (ICML 2023, arXiv:2211.17192) and Chen et al. (arXiv:2302.01318) for drafts;
SpecInfer (ASPLOS 2024, arXiv:2305.09781) for trees; names and the synthetic acceptance are those of vLLM 0.33
(``config/speculative.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappush
from typing import cast

import numpy as np
from numpy.typing import NDArray

from simulator.kv.pool import BlockPool
from simulator.scheduling.args import EngineArgs, Speculation
from simulator.scheduling.policy import Policy
from simulator.scheduling.request import Request
from simulator.scheduling.state import EngineState
from simulator.scheduling.step import Step
from simulator.scheduling.vllm import Vllm

Ints = NDArray[np.int64]

WORD = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15  # of SplitMix64 (Steele, Lea, Flood, doi:10.1145/2660193.2660195)
AHEAD = 1024  # steps; grows when a request has more to come


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Which drafts are accepted: a function of the request and of how many tokens it has made, and of nothing else.

    key: 64 random bits of the scenario's seed.
    """

    speculation: Speculation
    key: int

    def gains(self, row: int, made: int, left: int, drafts: int) -> list[int]:
        """Tokens made by each coming step of request ``row``, which has made ``made`` and owes ``left``.

        One number per step decides: the first ``i`` of ``drafts`` tokens are accepted if it is below rate ``i``.
        """
        if not drafts:
            return [1] * left
        uniform = _uniforms(_mix(self.key + row * GOLDEN), made, left)
        rates = np.array(self.speculation.rates[:drafts])[::-1]
        accepted = (drafts - np.searchsorted(rates, uniform, side="right")).tolist()
        gains: list[int] = []
        position = 0
        while position < left:
            gain = accepted[position] + 1
            gains.append(gain)
            position += gain
        gains[-1] -= position - left  # what exceeds the request's output is thrown away
        return gains


def _mix(word: int) -> int:
    word &= WORD
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & WORD
    return word ^ (word >> 31)


def _uniforms(key: int, first: int, count: int) -> NDArray[np.float64]:
    """SplitMix64's numbers ``first`` to ``first + count - 1``, in [0, 1)."""
    word = np.arange(first + 1, first + count + 1, dtype=np.uint64)
    word *= np.uint64(GOLDEN)
    word += np.uint64(key)
    word ^= word >> np.uint64(30)
    word *= np.uint64(0xBF58476D1CE4E5B9)
    word ^= word >> np.uint64(27)
    word *= np.uint64(0x94D049BB133111EB)
    word ^= word >> np.uint64(31)
    return np.asarray((word >> np.uint64(11)).astype(np.float64) * 2.0**-53)


class Future:
    """What a decoding request does from the step at which it joined."""

    __slots__ = ("computed", "deltas", "gains", "held", "start")

    def __init__(self, start: int, gains: list[int], computed: Ints, held: Ints, window: int | None) -> None:
        """start: token step. gains: tokens made by each step. computed, held: tokens computed and KV blocks held
        before the first step, after it, after the second, ... (len(gains) + 1,).
        """
        self.start = start
        self.gains = gains
        self.computed = computed
        self.held = held
        self.deltas: Ints = np.empty((3, len(gains)), dtype=np.int64)  # of tokens, clipped tokens, blocks
        self.deltas[0] = gains
        self.deltas[1] = 0 if window is None else np.diff(np.minimum(computed, window))
        self.deltas[2] = np.diff(held)


class SpeculativeState(EngineState):
    """An ``EngineState`` whose decoding requests make several tokens a step, each its own number.

    Steps are planned one by one: each has a price of its own. Blocks are taken before a step for all tokens that it
    verifies (vLLM's ``allocate_slots``), up to those that the request's own length needs.
    """

    __slots__ = ("_ahead", "_base", "_futures", "_window_tokens", "acceptance", "bursts", "drafts")

    def __init__(
        self, args: EngineArgs, pool: BlockPool, acceptance: Acceptance, bursts: list[tuple[int, bytes]], *,
        window: int | None = None,
    ) -> None:  # fmt: skip
        """bursts: of each request, the tokens of its steps, added when it leaves the batch."""
        super().__init__(args, pool, window=window)
        self.acceptance = acceptance
        self.bursts = bursts
        self.drafts = acceptance.speculation.drafts(0)  # tokens drafted per request and step
        self._futures: dict[Request, Future] = {}
        self._ahead: Ints = np.zeros((3, AHEAD), dtype=np.int64)  # sums of ``Future.deltas``
        self._base = 0  # token step of its first column
        self._window_tokens = 0  # tokens computed, each request's clipped to the window

    def settle_drafts(self) -> None:
        """Draft as many tokens as the schedule says for the batch as it is now."""
        drafts = self.acceptance.speculation.drafts(self.num_decodes)
        if drafts == self.drafts:
            return
        self.drafts = drafts
        for request in list(self._futures):
            first = request.first_token_step
            self.leave(request)
            self.join(request, 0)
            request.first_token_step = first

    # -- the decoding batch ------------------------------------------------------------------------------------

    def join(self, request: Request, left: int) -> None:
        """As in ``EngineState``; how many steps it takes is drawn here, so ``left`` says nothing."""
        del left
        start, computed = self.token_steps, request.computed
        future = self._future(request)
        request.decoding = True
        request.lane = self.lane
        request.offset = computed - start
        request.first_token_step = start
        request.last_step = start + len(future.gains)
        self._futures[request] = future
        self._add(future, 0, 1)
        self.num_decodes += 1
        self.computed_sum += computed
        if self.window is not None:
            self._window_tokens += min(computed, self.window)
        self.batch_version += 1
        self.last_decode_order = max(self.last_decode_order, request.order)
        heappush(self._ends, (request.last_step, request.order, request))

    def _future(self, request: Request) -> Future:
        computed = request.computed
        final = request.prompt_tokens + request.output_tokens - 1  # its last token needs no KV
        gains = self.acceptance.gains(request.row, computed + 1 - request.prompt_tokens, final - computed, self.drafts)
        after = np.empty(len(gains) + 1, dtype=np.int64)
        after[0] = computed
        np.cumsum(gains, out=after[1:])
        after[1:] += computed
        reach = np.minimum(after[:-1] + (1 + self.drafts), final)
        held = np.concatenate([[computed], reach])
        return Future(self.token_steps, gains, after, -(-held // self.block_size), self.window)

    def leave(self, request: Request) -> None:
        """As in ``EngineState``. Blocks beyond those of computed tokens are given back."""
        future = self._futures.pop(request)
        done = self.token_steps - future.start
        computed = int(future.computed[done])
        if done < len(future.gains):
            self._add(future, done, -1)
        if done:
            self.bursts.append((request.row, bytes(future.gains[:done])))
        self.pool.give_back(int(future.held[done]) - -(-computed // self.block_size))
        request.computed = computed
        request.decoding = False
        self.num_decodes -= 1
        self.computed_sum -= computed
        if self.window is not None:
            self._window_tokens -= min(computed, self.window)
        self.batch_version += 1

    def _add(self, future: Future, done: int, sign: int) -> None:
        """Count the steps of a future that are still to come, or no longer."""
        here = self.token_steps - self._base
        need = here + len(future.gains) - done + 1
        if need > self._ahead.shape[1]:
            kept = self._ahead[:, here:]
            self._ahead = np.zeros((3, max(2 * (need - here), 2 * AHEAD)), dtype=np.int64)
            width = min(kept.shape[1], self._ahead.shape[1])
            self._ahead[:, :width] = kept[:, :width]
            self._base, here = self.token_steps, 0
        self._ahead[:, here : here + len(future.gains) - done] += sign * future.deltas[:, done:]
        self._show_blocks(here)

    def _show_blocks(self, here: int) -> None:
        """Policies read the blocks that the next step takes in ``phase``."""
        self.phase[self.token_steps % self.block_size] = int(self._ahead[2, here])

    def advance(self, steps: int) -> bool:
        """One step: every decoding request makes what it makes; takes its blocks."""
        assert steps == 1
        size = self.block_size
        here = self.token_steps - self._base
        tokens, clipped, blocks = self._ahead[:, here].tolist()
        if blocks:
            self.pool.take(blocks)
        self.computed_sum += tokens
        self._window_tokens += clipped
        self.phase[self.token_steps % size] = 0
        self.token_steps += 1
        self.batch_version += 1  # contexts do not grow by one token each: every step has a price of its own
        here += 1
        if here + 1 >= self._ahead.shape[1]:
            self._ahead[:] = 0  # nobody has steps to come as far as this
            self._base, here = self.token_steps, 0
        self._show_blocks(here)
        return self._ends[0][0] <= self.token_steps

    def computed_of(self, request: Request) -> int:
        future = self._futures[request]
        return int(future.computed[self.token_steps - future.start])

    def next_block(self, request: Request) -> int:
        """Blocks that the next step of a decoding request takes."""
        future = self._futures[request]
        return int(future.deltas[2, self.token_steps - future.start])

    @property
    def windowed_sum(self) -> int:
        """As if each request made one token: what verifying adds is the price's to say."""
        if self.window is None:
            return 0
        return min(self._window_tokens + self.num_decodes, self.num_decodes * self.window)

    def detach(self, request: Request, step: Step, scheduled: int = 0) -> bool:
        if scheduled and request.decoding:  # the blocks of a step that it will not take part in
            self.pool.give_back(self.next_block(request))
            scheduled = 0
        return super().detach(request, step, scheduled)

    def flush(self) -> None:
        """The simulation stops: write down the steps of those who still decode."""
        for request, future in self._futures.items():
            done = self.token_steps - future.start
            if done:
                self.bursts.append((request.row, bytes(future.gains[:done])))


class Drafting(Vllm):
    """vLLM's steps where every running request computes its last token and a draft in each of them."""

    def __init__(self, args: EngineArgs) -> None:
        super().__init__(args)
        self._whole = self.budget

    def schedule(self, state: EngineState) -> Step | None:
        state = cast("SpeculativeState", state)
        state.settle_drafts()
        speculation = state.acceptance.speculation
        self.budget = self._whole - state.num_decodes * speculation.verified(state.drafts)
        return super().schedule(state)


def speculating(policy: type[Policy]) -> type[Policy]:
    """``policy`` with drafts. It ``speculates``, so its steps are vLLM's."""
    assert issubclass(policy, Vllm)
    return type(f"Drafting{policy.__name__}", (Drafting, policy), {})
