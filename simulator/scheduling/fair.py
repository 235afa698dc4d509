"""What fair policies share: queues per tenant, and an account of what each tenant has been served."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Annotated

from simulator.core.options import Range, numbers
from simulator.scheduling.args import EngineArgs
from simulator.scheduling.prediction import made
from simulator.scheduling.request import Request
from simulator.scheduling.state import EngineState
from simulator.scheduling.step import DECODE, Step
from simulator.scheduling.vllm import Vllm


@dataclass(frozen=True)  # without slots: options of policies derive from it
class Fairness:
    """Options. input_weight, output_weight: what a token of the prompt and one of the output count for. weights: shares
    of the tenants, such as "1, 2", in alphabetical order of the trace's ``tenant`` labels; 1 for those beyond."""

    input_weight: Annotated[float, Range(0)] = 1.0
    output_weight: Annotated[float, Range(0)] = 2.0
    weights: str = ""


class Account:
    """Service of one tenant, in whole tokens: sums do not depend on how often they are brought up to date."""

    __slots__ = ("inputs", "outputs", "queue", "weight")

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.inputs = 0  # prompt tokens of requests that were admitted
        self.outputs = 0  # tokens made for it
        self.queue: deque[Request] = deque()


class TenantQueues:
    """One queue per tenant; ``turn`` says whose head is next."""

    def __init__(self, policy: Fair) -> None:
        self._policy = policy

    def _queues(self) -> Iterator[Request]:
        return chain.from_iterable(account.queue for account in self._policy.accounts.values())

    def __len__(self) -> int:
        return self._policy.num_waiting

    def __iter__(self) -> Iterator[Request]:
        return self._queues()

    def __getitem__(self, index: int) -> Request:
        if index:
            return list(self._queues())[index]
        turn = self._policy.turn
        return self._policy.accounts[turn].queue[0] if turn is not None else next(self._queues())

    def append(self, request: Request) -> None:
        self._policy.joins(request).append(request)

    def appendleft(self, request: Request) -> None:
        self._policy.joins(request).appendleft(request)

    def popleft(self) -> Request:
        return self._policy.takes(self[0])


class Fair(Vllm):
    """vLLM's steps, with the waiting queue split by tenant; ``choose`` says whose turn it is.

    Accounts are brought up to date when a step is planned: a prompt counts as its request is admitted for the first
    time, an output token when it is made. A preempted request goes back to the head of its tenant's queue.
    """

    unused = frozenset({"scheduling_policy"})
    pipelines = False

    def __init__(self, args: EngineArgs, options: Fairness) -> None:
        super().__init__(replace(args, options={}))
        self.input_weight, self.output_weight = options.input_weight, options.output_weight
        self.weights = numbers(f"engine policy {args.policy!r}", "weights", options.weights)

    def choose(self, tenants: list[int]) -> int:
        """Whose head is next, of the tenants that wait (one at least). It changes nothing: steps ask more often."""
        raise NotImplementedError

    def returns(self, tenant: int, waiting: list[int]) -> None:
        """A tenant that had nobody waiting has somebody again; waiting: the others that have."""

    def empties(self, tenant: int) -> None:
        """The last waiting request of a tenant has been admitted."""

    def prepare(self, state: EngineState) -> None:
        self.accounts: dict[int, Account] = {}
        self.num_waiting = 0
        self.turn: int | None = None
        self.newcomers: list[int] = []  # tenants that have come back since the last step was planned, in order
        self.served: dict[Request, int] = {}  # requests that have been admitted, and tokens counted
        self.back: set[Request] = set()  # those of them that were preempted and wait again
        state.waiting = TenantQueues(self)

    # -- the queue ---------------------------------------------------------------------------------------------

    def account(self, tenant: int) -> Account:
        found = self.accounts.get(tenant)
        if found is None:
            weight = self.weights[tenant] if 0 <= tenant < len(self.weights) else 1.0
            found = self.accounts[tenant] = Account(weight)
        return found

    def joins(self, request: Request) -> deque[Request]:
        """The queue for a request, which is about to be put into it."""
        account = self.account(request.tenant)
        if not account.queue:
            self.newcomers.append(request.tenant)
        self.num_waiting += 1
        if request in self.served:
            self.back.add(request)
        return account.queue

    def takes(self, request: Request) -> Request:
        """Admit the head of its tenant's queue."""
        account = self.accounts[request.tenant]
        account.queue.popleft()
        self.num_waiting -= 1
        self.back.discard(request)
        if request not in self.served:
            account.inputs += request.prompt_tokens
            self.served[request] = 0
        if not account.queue:
            self.empties(request.tenant)
        self._next_turn()
        return request

    def _next_turn(self) -> None:
        tenants = [tenant for tenant, account in self.accounts.items() if account.queue]
        self.turn = self.choose(tenants) if tenants else None

    # -- planning ----------------------------------------------------------------------------------------------

    def arrive(self, state: EngineState, request: Request) -> bool:
        behind = bool(self.account(request.tenant).queue)
        state.waiting.append(request)
        return not behind  # else its tenant's turn brings another one first

    def schedule(self, state: EngineState) -> Step | None:
        if not self.num_waiting:
            return super().schedule(state)
        self._settle(state)
        while self.newcomers:
            others = [t for t, account in self.accounts.items() if account.queue and t not in self.newcomers]
            self.returns(self.newcomers.pop(0), others)
        if len(state.running) < self.max_num_seqs:  # else nobody's turn comes
            self._next_turn()
        plan = super().schedule(state)
        several = sum(bool(account.queue) for account in self.accounts.values()) > 1
        if plan is DECODE and several and len(state.running) < self.max_num_seqs:
            return Step(decodes=True)  # whose turn it is may change with every token: look again at the next step
        return plan

    def _settle(self, state: EngineState) -> None:
        """Count the tokens made since the last time."""
        steps = state.token_steps
        for request, counted in list(self.served.items()):
            here = request in state.running
            if (here and (request.decoding or request in state.prefilling)) or request in self.back:
                now = made(steps, request)
                self.served[request] = now
            else:  # it has ended, or its last token is on its way
                now = request.output_tokens
                del self.served[request]
            self.accounts[request.tenant].outputs += now - counted
