"""KV blocks of requests that hold other than one per ``block_size`` tokens: bounded ones, or some beside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from simulator.kv.pool import BlockPool
from simulator.scheduling.args import EngineArgs
from simulator.scheduling.request import Request
from simulator.scheduling.state import EngineState
from simulator.scheduling.step import Step


@dataclass(frozen=True, slots=True)
class Holding:
    """What a request holds. most_tokens: of its context, the model's window; None: all of it. extra_blocks: beside."""

    most_tokens: int | None = None
    extra_blocks: int = 0

    def blocks(self, tokens: int, block_size: int) -> int:
        """Blocks of a request with so many tokens computed. The newest token takes the place of one that is dropped, so
        that a window of ``n`` is ``n - 1`` tokens between steps."""
        if self.most_tokens is not None and tokens >= self.most_tokens:
            tokens = self.most_tokens - 1
        return -(-tokens // block_size) + self.extra_blocks if tokens > 0 else 0

    def longest(self, blocks: int, block_size: int, limit: int) -> int:
        """Tokens, prompt and output, of the longest request that so many blocks hold. limit: 0, or no more than that.
        The last token needs no KV of its own."""
        if self.most_tokens is not None and self.blocks(self.most_tokens, block_size) <= blocks:
            return limit or 1 << 40
        capacity = max(blocks - self.extra_blocks, 0) * block_size + 1
        return min(capacity, limit) if limit else capacity


class HoldingState(EngineState):
    """An engine's state whose requests hold as ``Holding`` says; without a prefix cache.

    To the state it builds on, requests hold what is reserved for them (``grows`` is off there); how much that is, is
    kept here. A decoding request takes a block whenever one is full, until its context reaches the window.
    """

    __slots__ = ("_taking", "holding")

    def __init__(
        self, args: EngineArgs, pool: BlockPool, holding: Holding, *, window: int | None, grows: bool = True
    ) -> None:
        """grows: as in ``EngineState``; off, the policy reserves what ``blocks_of`` tells. Here for its lanes alike."""
        super().__init__(args, pool, window=window, grows=False)
        self.holding = holding
        self._taking = grows

    def _another(self) -> Self:
        return type(self)(self.args, self.pool, self.holding, window=self.window, grows=self._taking)

    def blocks_of(self, tokens: int) -> int:
        return self.holding.blocks(tokens, self.block_size)

    def blocks_for(self, request: Request, tokens: int) -> int:
        return self.blocks_of(request.computed + tokens) - self.blocks_of(request.computed)

    def next_block(self, request: Request) -> int:
        """As in ``EngineState``."""
        computed = request.offset + self.token_steps
        return self.blocks_of(computed + 1) - self.blocks_of(computed)

    def blocks_held(self, request: Request) -> int:
        return self.blocks_of(request.offset + self.token_steps if request.decoding else request.computed)

    def chunk(self, request: Request, tokens: int, step: Step) -> None:
        if self._taking:
            blocks = self.blocks_for(request, tokens)
            self.pool.take(blocks)
            request.reserved = blocks + (request.reserved if request.computed else 0)
        super().chunk(request, tokens, step)

    def _takes(self, request: Request) -> bool:
        return self._taking and (self.holding.most_tokens is None or request.crossing >= 0)

    def join(self, request: Request, left: int) -> None:
        super().join(request, left)
        if self._takes(request):
            self.phase[-request.offset % self.block_size] += 1

    def leave(self, request: Request) -> None:
        if self._takes(request):
            self.phase[-request.offset % self.block_size] -= 1
        super().leave(request)
        if self._taking:
            request.reserved = self.blocks_of(request.computed)

    def crossed(self, request: Request) -> None:
        if self._taking and self.holding.most_tokens is not None:
            self.phase[-request.offset % self.block_size] -= 1

    def blocks_over(self, steps: int) -> int:
        size = self.block_size
        rounds, rest = divmod(steps, size)
        first = self.token_steps % size
        phase = self.phase
        return rounds * sum(phase) + sum((phase + phase)[first : first + rest])

    def advance(self, steps: int) -> bool:
        blocks = self.phase[self.token_steps % self.block_size] if steps == 1 else self.blocks_over(steps)
        if blocks:
            self.pool.take(blocks)
        return super().advance(steps)

    def detach(self, request: Request, step: Step, scheduled: int = 0) -> bool:
        if self._taking and scheduled:  # blocks the policy has taken for this step
            computed = request.offset + self.token_steps if request.decoding else request.computed
            self.pool.give_back(self.blocks_of(computed + scheduled) - self.blocks_of(computed))
        waits = super().detach(request, step, scheduled)
        request.reserved = 0  # one whose last token was on its way is released again when that arrives
        return waits
