"""Learning to rank (vLLM-LTR)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from simulator.core.options import Range, read_options
from simulator.scheduling.args import EngineArgs
from simulator.scheduling.ordered import Rank, RankedQueue
from simulator.scheduling.policy import POLICIES
from simulator.scheduling.prediction import LengthPredictor, Prediction
from simulator.scheduling.preemptive import Preemptive
from simulator.scheduling.request import Request
from simulator.scheduling.state import EngineState
from simulator.scheduling.swapping import Swapping


@dataclass(frozen=True, slots=True)
class LtrOptions(Swapping, Prediction):
    """starvation_steps: a request that has waited so many steps goes first (0: never), for quantum_steps steps."""

    predictor: Literal["oracle", "log-normal", "bins", "rank"] = "rank"
    tau: Annotated[float, Range(0, 1)] = 0.6
    starvation_steps: Annotated[int, Range(0)] = 1000
    quantum_steps: Annotated[int, Range(1)] = 100


@POLICIES.register("ltr")
class Ltr(Preemptive):
    """Learning to rank: requests run in the order of a ranking model's scores, and the starving go first.

    Decides: order by a score given once, at arrival (by default a rank predictor with Kendall's tau 0.6); those of the
    best scores that fit make up the batch, at every step, and running requests behind a waiting one give way. Their KV
    stays on the GPU until others need its room, then it is thrown away or swapped out (option ``preemption``). Whoever
    has waited ``starvation_steps`` steps since it last ran comes before all others until it has run ``quantum_steps``.
    Why it helps: an order is easier to learn than lengths, and it is all that shortest-job-first needs.
    Limits: as ``srpt``; progress does not count, so a long request close to its end may give way. The paper's ranking
    costs 2 % of the time; here nothing. Steps are counted while somebody waits.
    Reference: Fu et al., NeurIPS 2024 (arXiv:2408.15792), algorithm 1.
    """

    steady = False
    stays = True

    def __init__(self, args: EngineArgs) -> None:
        options = read_options(LtrOptions, args.policy, args.options)
        super().__init__(args, options)
        self.predict = LengthPredictor(options)
        self.starvation, self.quantum = options.starvation_steps, options.quantum_steps
        self.steady = not self.starvation
        self.steps = 0  # planned while somebody waited
        self.since: dict[Request, int] = {}  # step from which a request has waited
        self.bumped: dict[Request, int] = {}  # step until which a request goes first; 0: it has not run yet

    def rank(self, state: EngineState, request: Request) -> Rank:
        return request not in self.bumped, self.predict(request)

    def refresh(self, state: EngineState, queue: RankedQueue) -> None:
        if not self.starvation:
            return
        self.steps = now = self.steps + 1
        waiting = [*(queue[i] for i in range(len(queue))), *state.swapped]
        self.since = {request: self.since.get(request, now) for request in waiting}
        before = len(self.bumped)
        self.bumped = {
            r: until for r, until in self.bumped.items() if r in self.since or (r in state.running and now < until)
        }
        starving = [r for r, since in self.since.items() if now - since >= self.starvation and r not in self.bumped]
        self.bumped.update(dict.fromkeys(starving, 0))
        if starving or len(self.bumped) != before:
            queue.resort()

    def entered(self, state: EngineState, request: Request) -> None:
        self.since.pop(request, None)
        if self.bumped.get(request) == 0:
            self.bumped[request] = self.steps + self.quantum
