"""What policies share that take running requests out in favour of waiting ones."""

from __future__ import annotations

from simulator.kv.prefix import NO_HIT, Hit
from simulator.scheduling.args import EngineArgs
from simulator.scheduling.ordered import Rank, RankedQueue
from simulator.scheduling.paging import next_chunks, planned
from simulator.scheduling.policy import CHUNKING, Policy
from simulator.scheduling.request import Request
from simulator.scheduling.state import EngineState
from simulator.scheduling.step import DECODE, Step
from simulator.scheduling.swapping import HostMemory, Swapping

Key = tuple[Rank, float, int]


class Preemptive(Policy):
    """At every step boundary, those who come first in the order of ``rank`` run; the others wait.

    The waiting or swapped-out request of least rank enters when a sequence, budget and KV blocks for its whole prompt
    are there; where they are not, running requests of a greater rank give way, the greatest first, as many as it takes
    and only if that suffices; a prompt that has begun is computed to its end, so that everybody who enters makes a
    token. Nobody overtakes one that does not fit. Then every running request makes a token and
    prompts fill the rest of ``max_num_batched_tokens``, in chunks. Out of blocks, the greatest rank gives way.

    KV of those who gave way is swapped out or thrown away. With ``stays`` it is so only once others need its blocks, of
    the greatest rank first: until then it remains on the GPU, and coming back costs nothing. (It counts as free and is
    not charged to the prefix cache, which may hold as much.)
    """

    unused = CHUNKING | {"scheduling_policy"}
    steady = True
    """Whether a request that cannot enter now can only do so after an arrival or a finish, as long as it is behind the
    running requests: then nothing is to be decided between those. Else every step is planned while somebody waits."""
    stays = False
    """Whether the KV of requests that give way stays on the GPU while there is room."""

    def __init__(self, args: EngineArgs, swapping: Swapping) -> None:
        self.budget = args.max_num_batched_tokens
        self.max_num_seqs = min(args.max_num_seqs, self.budget)
        self.host = HostMemory(swapping, args)
        self.resident: dict[Request, int] = {}  # who gave way with its KV still on the GPU, and how many blocks that is

    # -- what a policy says ------------------------------------------------------------------------------------

    def rank(self, state: EngineState, request: Request) -> Rank:
        """Smaller runs first. Of a request that waits, it changes in ``refresh`` only."""
        raise NotImplementedError

    def refresh(self, state: EngineState, queue: RankedQueue) -> None:
        """Before a step is planned with somebody waiting or swapped out: bring ranks up to date."""

    def may_displace(self, state: EngineState, request: Request, running: Request) -> bool:
        """Whether a request that enters may take the place of a running one, which comes after it."""
        return True

    def entered(self, state: EngineState, request: Request) -> None:
        """A request runs from this step on."""

    def gave_way(self, state: EngineState, request: Request) -> None:
        """A request runs no more."""

    def copies(self, state: EngineState, step: Step, blocks: int) -> None:
        """Blocks go to host memory or come back: nothing is computed meanwhile."""
        step.extra_s += blocks * self.host.block_copy_s

    # -- planning ----------------------------------------------------------------------------------------------

    def prepare(self, state: EngineState) -> None:
        self.queue = RankedQueue(lambda request: self.rank(state, request))
        state.waiting = self.queue

    def arrive(self, state: EngineState, request: Request) -> bool:
        self.queue.append(request)
        return not self.steady or self.queue[0] is request

    def schedule(self, state: EngineState) -> Step | None:
        step = Step(decodes=False)
        if self.resident:
            here = set(state.swapped)  # others have been taken to another engine
            self.resident = {r: blocks for r, blocks in self.resident.items() if r in here}
        somebody = bool(len(state.waiting) or state.swapped)
        if somebody:
            self.refresh(state, self.queue)
        while state.blocks_next > state.pool.free:
            self._give_way(state, step, self._last(state))
        came_back = somebody and self._enter(state, step)
        budget = self.budget - state.num_decodes
        if budget > 0 and state.prefilling:
            ahead = state.blocks_next
            state.pool.take(ahead)  # decodes come first: theirs are out of reach of the prompts
            next_chunks(state, step, budget)
            state.pool.give_back(ahead)  # taken again as the step is applied
        if self.resident:
            self._make_room(state, step)
        plan = planned(state, step)
        # Who comes back may find the engine idle, and a span does not begin there: arrivals of that moment come first.
        if step.extra_s or (plan is DECODE and (came_back or self._may_change(state))):
            return step
        return plan

    def _may_change(self, state: EngineState) -> bool:
        """Whether the next step may be another one although nobody arrives or ends."""
        if state.swapped and (state.releasing or self.resident):
            return True  # blocks of a finished request may let a swapped one in, new ones may need those of another
        return not self.steady and bool(len(state.waiting) or state.swapped)

    def _key(self, state: EngineState, request: Request) -> Key:
        return self.rank(state, request), request.arrival, request.row

    def _last(self, state: EngineState) -> Request:
        """Of the running requests, the one that comes last; not one whose last token is on its way."""
        candidates = (r for r in state.running if r.decoding or r in state.prefilling)
        return max(candidates, key=lambda request: self._key(state, request))

    def _give_way(self, state: EngineState, step: Step, victim: Request) -> None:
        blocks = state.blocks_held(victim)
        if self.stays and victim.decoding:
            state.swap_out(victim, step)
            self.resident[victim] = blocks
        elif victim.decoding and self._host_takes(state, blocks):
            state.swap_out(victim, step)
            self.copies(state, step, blocks)
        else:
            state.preempt(victim, step)
        self.gave_way(state, victim)

    def _host_takes(self, state: EngineState, blocks: int) -> bool:
        return self.host.takes(blocks, sum(map(state.blocks_held, state.swapped)) - sum(self.resident.values()))

    def _make_room(self, state: EngineState, step: Step) -> None:
        """KV for which there is no room any more leaves the GPU, of who comes last first."""
        kept = sum(self.resident.values())
        while kept > state.pool.free - state.blocks_next:
            request = max(self.resident, key=lambda r: self._key(state, r))
            blocks = self.resident[request]
            swaps = self._host_takes(state, blocks)
            del self.resident[request]
            kept -= blocks
            if swaps:
                self.copies(state, step, blocks)
            else:
                state.discard(request, step)

    def _enter(self, state: EngineState, step: Step) -> bool:
        """Let in those who come first, one by one. True when one of them had been swapped out."""
        came_back = False
        budget = self.budget - state.num_decodes - sum(r.target - r.computed for r in state.prefilling)
        gone = set(step.preempted)
        while budget > 0:
            request = self._first(state)
            if request is None or request in gone:
                return came_back
            swapped = not (len(self.queue) and self.queue[0] is request)
            hit = NO_HIT if swapped else state.hit(request)
            victims = self._in_the_way(state, request, self._need(state, request, hit, swapped=swapped))
            if victims is None:
                return came_back
            for victim in victims:
                self._give_way(state, step, victim)
                gone.add(victim)
            budget += len(victims)
            if victims:  # blocks that others hold too are not free, and cached ones have new places
                hit = NO_HIT if swapped else state.hit(request)
                if self._need(state, request, hit, swapped=swapped) > self._room(state):
                    return came_back
            if swapped:
                self._swap_in(state, step, request)
                came_back = True
                budget -= 1
            else:
                self.queue.popleft()
                state.admit(request, hit, step)
                budget -= request.target - request.computed
            self.entered(state, request)
        return came_back

    def _first(self, state: EngineState) -> Request | None:
        """Of the waiting and the swapped-out requests, the one that comes first."""
        first = self.queue[0] if len(self.queue) else None
        if state.swapped:
            back = min(state.swapped, key=lambda r: self._key(state, r))
            if first is None or self._key(state, back) < self._key(state, first):
                return back
        return first

    def _need(self, state: EngineState, request: Request, hit: Hit, *, swapped: bool) -> int:
        """Blocks that a request takes when it enters, for its whole prompt."""
        size = state.block_size
        if swapped:
            return -(-(request.computed + 1) // size)  # with the token it makes at once
        return -(-request.target // size) - hit.blocks + hit.free_blocks

    def _room(self, state: EngineState) -> int:
        """Free blocks that nobody is about to take: neither the next tokens nor the rest of the running prompts."""
        promised = sum(state.blocks_for(r, r.target - r.computed) for r in state.prefilling)
        return state.pool.free - state.blocks_next - promised

    def _in_the_way(self, state: EngineState, request: Request, need: int) -> list[Request] | None:
        """Running requests that have to give way for ``request``; None when they do not suffice."""
        room = self._room(state)
        seats = self.max_num_seqs - len(state.running)
        if room >= need and seats > 0:
            return []
        mine = self._key(state, request)
        behind = [(self._key(state, r), r) for r in state.running if r.decoding]
        behind = [entry for entry in behind if entry[0] > mine and self.may_displace(state, request, entry[1])]
        behind.sort(reverse=True, key=lambda entry: entry[0])
        victims: list[Request] = []
        for _, victim in behind:
            victims.append(victim)
            seats += 1
            room += self._freed(state, victim)
            if room >= need and seats > 0:
                return victims
        return None

    @staticmethod
    def _freed(state: EngineState, victim: Request) -> int:
        """Blocks that are anybody's once a request has given way: held ones, and one that its next token would take."""
        return -(-(victim.offset + state.token_steps + 1) // state.block_size)

    def _swap_in(self, state: EngineState, step: Step, request: Request) -> None:
        state.swapped.remove(request)
        state.swapped.appendleft(request)
        blocks = state.blocks_held(request)
        state.swap_in()
        if self.resident.pop(request, None) is None:
            self.copies(state, step, blocks)
