"""Scheduling for the experience of whoever reads along (Andes)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from simulator.core.options import Range, read_options
from simulator.scheduling.args import EngineArgs
from simulator.scheduling.ordered import Rank, RankedQueue
from simulator.scheduling.policy import POLICIES
from simulator.scheduling.prediction import made
from simulator.scheduling.preemptive import Preemptive
from simulator.scheduling.request import Request
from simulator.scheduling.state import EngineState
from simulator.scheduling.swapping import Swapping


@dataclass(frozen=True, slots=True)
class AndesOptions(Swapping):
    """expected_ttft_s, expected_tokens_per_s: what readers expect (a second; 240 words a minute, 4.8 tokens/s).
    horizon_s: over which serving a request and letting it wait are compared. interval_s: between two choices.
    preemption_cap: preemptions per request, on average, above which nobody gives way."""

    expected_ttft_s: Annotated[float, Range(0)] = 1.0
    expected_tokens_per_s: Annotated[float, Range(1e-3)] = 4.8
    horizon_s: Annotated[float, Range(1e-3)] = 5.0
    interval_s: Annotated[float, Range(0)] = 0.5
    preemption_cap: Annotated[float, Range(0)] = 1.0


class Reader:
    """How far the tokens of a request have come, and how far its reader."""

    __slots__ = ("density", "read_s", "since", "tokens")

    def __init__(self, arrival: float) -> None:
        self.tokens = 0
        self.since = arrival  # s, when that many were there
        self.read_s = 0.0  # s, when all of them will have been read
        self.density = 0.0

    def update(self, tokens: int, now: float, pace_s: float) -> None:
        """``tokens`` are there now. Those that came since the last time are taken to have come evenly."""
        new = tokens - self.tokens
        if new > 0:
            gap = (now - self.since) / new
            first = self.since + gap
            # Token k is read at max(arrival of k, reading of k - 1 + pace): the first or the last to come decides.
            self.read_s = (
                max(self.read_s + new * pace_s, first + (new - 1) * pace_s, now)
                if self.tokens
                else max(first + (new - 1) * pace_s, now)
            )
            self.tokens = tokens
        self.since = now


@POLICIES.register("andes")
class Andes(Preemptive):
    """Andes: KV goes to the requests whose readers would notice.

    Decides: every ``interval_s`` while somebody waits, each request is asked what serving it rather than letting it
    wait does to its QoE over ``horizon_s``; those that gain most per token of KV run (the greedy knapsack), and running
    ones with less to gain give way, as long as preemptions per request stay below a cap. A reader takes tokens at the
    pace of ``expected_tokens_per_s`` and no faster, so a request that is ahead of its reader by more than the horizon
    gains nothing from being served.
    QoE is the area under the curve of tokens read over that under the expected curve, which starts at
    ``expected_ttft_s``. With L the seconds for which a waiting request's reader would have nothing to read, at most
    the horizon H, serving it saves an area of ``pace L^2 / 2`` of the ``pace (t + H - arrival - TTFT)^2 / 2`` expected.
    Why it helps: engines make tokens several times faster than people read them. Under overload that lead is lent to
    those who wait for their first token.
    Limits: no gain while everybody fits. When nobody has a lead (readers as fast as the engine), preempting helps some
    at the cost of others. A request that is very late has lost its QoE and yields to new ones. Tokens are taken to flow
    at reading speed or faster once a request is served; the paper predicts the rate from the batch size and searches
    over batch sizes. Copies and recomputation stop the engine and are not weighed in the choice.
    Reference: Liu et al., Andes, 2024 (arXiv:2404.16283), sections 3 and 4.
    """

    steady = False

    def __init__(self, args: EngineArgs) -> None:
        options = read_options(AndesOptions, args.policy, args.options)
        super().__init__(args, options)
        self.options = options
        self.pace_s = 1 / options.expected_tokens_per_s

    def prepare(self, state: EngineState) -> None:
        super().prepare(state)
        self.readers: dict[Request, Reader] = {}
        self.next_choice = 0.0  # s
        self.seen = self.displaced = 0  # requests, and preemptions of them

    def rank(self, state: EngineState, request: Request) -> Rank:
        reader = self.readers.get(request)
        return (-reader.density if reader is not None else 0.0,)

    def refresh(self, state: EngineState, queue: RankedQueue) -> None:
        waiting = [*(queue[i] for i in range(len(queue))), *state.swapped]
        choose = state.now >= self.next_choice
        if choose:
            self.next_choice = state.now + self.options.interval_s
            alive = {*waiting, *state.running}
            self.readers = {r: reader for r, reader in self.readers.items() if r in alive}
        new = [r for r in [*waiting, *state.running] if r not in self.readers]
        for request in new:
            self.readers[request] = Reader(request.arrival)
        self.seen += len(new)
        for request in self.readers if choose else new:
            self._weigh(state, request)
        if choose or new:
            queue.resort()

    def _weigh(self, state: EngineState, request: Request) -> None:
        """What a request gains by being served, per token of KV."""
        options, reader, now = self.options, self.readers[request], state.now
        tokens = made(state.token_steps, request)
        reader.update(tokens, now, self.pace_s)
        expected = request.arrival + options.expected_ttft_s
        due = expected + tokens * self.pace_s  # when the reader expects the next token, or is ready for it
        if tokens:
            due = max(due, reader.read_s + self.pace_s)
        end = now + options.horizon_s
        idle = min(end - due, options.horizon_s)
        gain = (idle / (end - expected)) ** 2 if idle > 0 else 0.0
        reader.density = gain / (request.prompt_tokens + tokens)

    def may_displace(self, state: EngineState, request: Request, running: Request) -> bool:
        ahead = self.readers[request].density > self.readers[running].density
        return ahead and self.displaced < self.options.preemption_cap * self.seen

    def gave_way(self, state: EngineState, request: Request) -> None:
        self.displaced += 1
