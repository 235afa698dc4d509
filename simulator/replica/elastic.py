"""An engine whose instances form groups anew for every iteration: elastic sequence parallelism.

``prefill_context_parallel_size`` instances (of ``tensor_parallel_size`` GPUs each) either compute a batch of prompts,
several batches side by side on groups of any size, or belong to the decode group, or are idle. The KV of all requests
is one pool. Who computes what an ``ElasticPolicy`` decides whenever a batch or a decode step ends or a request arrives.

- A batch of prompts is ring attention over its group. The instances that keep its KV have seen all of it pass by, so
  leaving it there takes no transfer, only writing more than their own share of it (``keep_seconds``).
- Decodes attend over the shares of their instances; the step lasts as long as the largest share. Their tokens are
  computed by as many *masters* as make the step shortest.
- An instance leaves the decode group when its KV has moved to the others, which holds up the next decode step and the
  batch that waits for it. Where in a group the KV of one request lies is not kept: what ends leaves every instance in
  proportion, what is generated is spread evenly.

Steps are planned one by one. Records hold rows that do not overlap: one per decode step, and one for the time between;
prompt tokens computed beside decode steps are told with those, as far as they were computed in that time.
"""

from __future__ import annotations

from heapq import heappop, heappush
from math import inf

from simulator.cost.context_parallel import elastic_costs
from simulator.cost.step import OperatorCost
from simulator.replica.engine import Engine, Observer
from simulator.replica.recorder import BUFFER, Recorder
from simulator.replica.steps import OnFinish, apply_step, record_moves, record_unfinished, release_ended
from simulator.scheduling.elastic import Allotment, ElasticPolicy, Instances, Prefill
from simulator.scheduling.request import Request
from simulator.scheduling.state import EngineState
from simulator.scheduling.step import Step


class Batch:
    """Prompts on their way. ``tokens`` are not yet told to the records."""

    __slots__ = ("asked", "begin", "end", "instances", "kept", "pauses", "step", "tokens")

    def __init__(  # noqa: PLR0917
        self, step: Step, prefill: Prefill, asked: float, begin: float, end: float, *, pauses: bool
    ) -> None:  # fmt: skip
        self.step = step
        self.asked, self.begin, self.end = asked, begin, end  # s; KV may have to move first
        self.instances, self.kept = prefill.instances, prefill.kept
        self.pauses = pauses
        self.tokens = step.prefill_tokens

    def computed_within(self, low: float, high: float) -> int:
        """Takes the tokens computed from ``low`` to ``high``; all that are left when the batch ends by then."""
        share = self.tokens
        if self.end > high:
            part = max(high - max(low, self.begin), 0.0) / (self.end - self.begin)
            share = min(int(part * self.step.prefill_tokens), self.tokens)
        self.tokens -= share
        return share


class ElasticEngine(Engine):
    """Same calls as ``Engine``. ``cost`` is that of all instances together."""

    __slots__ = (
        "_batches",
        "_costs",
        "_decode_end",
        "_held",
        "_idle",
        "_move_s",
        "_number",
        "_owed",
        "_pause_s",
        "_paused",
        "_per_instance",
        "_policy",
        "_prompt_tokens",
        "_resumed",
        "_step",
        "_told",
    )

    def __init__(
        self,
        state: EngineState,
        policy: ElasticPolicy,
        cost: OperatorCost,
        recorder: Recorder,
        *,
        on_finish: OnFinish | None = None,
        observer: Observer | None = None,
    ) -> None:
        super().__init__(state, policy, cost, recorder, step_mode=True, on_finish=on_finish, observer=observer)
        args = state.args
        self._policy = policy
        self._costs = elastic_costs(cost)
        self._idle = instances = args.prefill_context_parallel_size
        self._per_instance = state.pool.num_blocks * state.block_size // instances
        self._prompt_tokens = -(-args.max_num_batched_tokens // instances)
        self._held: list[float] = []  # KV tokens on each instance of the decode group
        self._batches: list[tuple[float, int, Batch]] = []  # heap: end, number
        self._number = 0
        self._decode_end = 0.0  # s, of the last decode step planned
        self._move_s = 0.0  # by which moving KV holds up the next decode step
        self._paused = False
        self._resumed = self._pause_s = 0.0  # s: when decodes were let go on, and how long they had waited
        self._told = 0.0  # s, up to where there are rows
        self._step: tuple[float, float, int, int, int] | None = None  # the decode step under way, as it will be told
        self._owed = 0  # prompt tokens of batches that ended beside it

    # -- called by the cluster ---------------------------------------------------------------------------------

    def add(self, request: Request, now: float) -> bool:
        """Queue a request: idle instances may begin with it at once. True when ``wake_time`` has changed."""
        self.policy.arrive(self.state, request)
        if now < self.wake_time:
            self.wake_time = now
            return True
        return False

    def quiet_until(self) -> float:
        """See ``Engine``: here, until the next batch or step ends."""
        return self.wake_time

    def settle(self, now: float) -> None:
        """Bring ``state`` to what it is at ``now``."""
        if self.wake_time < now:
            self.run_until(now)

    def run_until(self, time: float) -> None:
        """Do all that happens before ``time``."""
        state = self.state
        now = self.wake_time
        while now < time:
            self._tell(now)
            self._finish(now)
            release_ended(state, self.recorder, now, self.on_finish)
            if self._actions:
                self._actions[:] = [action for action in self._actions[:] if not action(now)]
            if self.observer is not None:
                self.observer.settled(now, state)
            state.now = now
            self._level()
            while (allotment := self._policy.allot(state, self._instances(now))) is not None:
                self._begin_batches(allotment, now)
            again = self._decode_end <= now and not self._paused and self._decode(now)
            if again:
                continue  # everybody who decoded gave way: somebody waiting fits now
            ends = self._batches[0][0] if self._batches else inf
            self.wake_time = now = min(ends, self._decode_end) if self._decode_end > now else ends

    def close(self, time: float) -> None:
        """Write down the requests still here; call once, when the simulation stops at ``time``."""
        self._tell(max(time, self._decode_end))
        release_ended(self.state, self.recorder, time, self.on_finish)
        record_unfinished(self.state, self.recorder)

    # -- prompts -----------------------------------------------------------------------------------------------

    def _instances(self, now: float) -> Instances:
        soonest = self._batches[0][0] - now if self._batches else inf
        rested = now - self._resumed >= self._pause_s or not self.state.num_decodes
        return Instances(
            idle=self._idle,
            held=() if self._paused else tuple(self._held),
            capacity=self._per_instance,
            prompt_tokens=self._prompt_tokens,
            next_idle_s=soonest,
            may_pause=rested and not self._paused,
            prefill_s=self._costs.prefill_seconds,
            decode_s=self._costs.decode_seconds,
            move_s=self._costs.move_seconds,
        )

    def _begin_batches(self, allotment: Allotment, now: float) -> None:
        """Take instances from the decode group as asked, and begin."""
        begin = now
        if allotment.gives_up or allotment.pauses:
            begin = max(now, self._decode_end)
        if allotment.gives_up:
            begin += self._give_up(allotment.gives_up)
        for prefill in allotment.batches:
            self._begin_batch(prefill, begin, now, pauses=allotment.pauses)

    def _give_up(self, number: int) -> float:
        """The instances that hold the least KV leave the decode group; seconds until it has moved."""
        self._held.sort()
        gone, rest = self._held[:number], self._held[number:]
        self._held = [tokens + sum(gone) / len(rest) for tokens in rest]
        self._idle += number
        seconds = self._costs.move_seconds(sum(gone))
        self._move_s += seconds
        return seconds

    def _begin_batch(self, prefill: Prefill, begin: float, now: float, *, pauses: bool) -> None:
        state, step = self.state, Step(decodes=False)
        for request in prefill.requests:
            _take(state, request)
            state.running[request] = None
            state.prefilling[request] = None
            request.order = next(state.admissions)
            request.computed = request.cached_tokens = 0
            step.admitted.append(request)
            state.chunk(request, request.target, step)
        record_moves(state, step, self.recorder, begin, self.last_token_time)
        if self.observer is not None:
            self.observer.planned(now, begin, step, state)
        seconds = self._costs.on(prefill.instances).mixed(0, 0, 0, step.chunks, len(step.chunks))
        seconds += self._costs.keep_seconds(step.prefill_tokens, prefill.instances, prefill.kept)
        batch = Batch(step, prefill, now, begin, begin + seconds, pauses=pauses)
        self._number += 1
        heappush(self._batches, (batch.end, self._number, batch))
        self._idle -= prefill.instances - (len(self._held) if pauses else 0)
        if pauses:
            self._paused, self._pause_s = True, seconds
        self.busy_until = max(self.busy_until, batch.end)

    def _finish(self, now: float) -> None:
        """Batches that have ended leave their KV where it is, and their requests decode from the next step on."""
        while self._batches and self._batches[0][0] <= now:
            end, _, batch = heappop(self._batches)
            self._owed += batch.tokens
            if batch.pauses:
                self._keep_everywhere(batch)
                self._paused, self._resumed = False, end
            else:
                self._held += [batch.step.prefill_tokens / batch.kept] * batch.kept
                self._idle += batch.instances - batch.kept
            apply_step(self.state, batch.step, self.recorder, end, self.last_token_time)
        releasing = self.state.releasing
        if len(releasing) > 1:  # a decode step that is under way may have told its own first
            ordered = sorted(releasing, key=_when)
            releasing.clear()
            releasing.extend(ordered)

    def _keep_everywhere(self, batch: Batch) -> None:
        """The decode group's instances took part: they keep what they have room for, the others as few as suffice."""
        self._idle += batch.instances - len(self._held)
        left = float(batch.step.prefill_tokens)
        for i in sorted(range(len(self._held)), key=self._held.__getitem__):
            part = min(max(self._per_instance - self._held[i], 0.0), left)
            self._held[i] += part
            left -= part
        while left > 0.5 and self._idle:
            part = min(float(self._per_instance), left)
            self._held.append(part)
            self._idle -= 1
            left -= part

    # -- decodes -----------------------------------------------------------------------------------------------

    def _level(self) -> None:
        """What has ended leaves every instance of the decode group in proportion; an empty group is none."""
        state = self.state
        flying = sum([-(-new // state.block_size) for _, _, b in self._batches for new, _ in b.step.chunks])
        tokens = float((state.pool.num_blocks - state.pool.free - flying) * state.block_size)
        if tokens <= 0.0 and not state.num_decodes and not self._paused:
            self._idle += len(self._held)
            self._held = []
            return
        total = sum(self._held)
        if total != tokens:
            share = 1.0 / len(self._held)
            self._held = [tokens * (held / total if total else share) for held in self._held]

    def _decode(self, now: float) -> bool:
        """Plan, price and apply the next decode step, if there is one and room for it. True: plan everything again."""
        state = self.state
        if not state.num_decodes:
            return False
        more = self._policy.grows_by(state, self._instances(now))
        self._held += [0.0] * more
        self._idle -= more
        if self._batches and sum(self._held) + state.num_decodes > len(self._held) * self._per_instance:
            return False
        step = self.policy.schedule(state)
        if step is None:
            return False
        if step.preempted:
            record_moves(state, step, self.recorder, now, self.last_token_time)
        if not step.decodes:
            return True
        if self.observer is not None:
            self.observer.planned(now, now, step, state)
        batch, context = state.num_decodes, state.computed_sum + state.num_decodes
        self._held = [held + batch / len(self._held) for held in self._held]
        largest = max(self._held) / sum(self._held) * len(self._held)
        seconds = self._costs.decode_step(len(self._held), batch, context * largest) + self._move_s
        self._move_s = 0.0
        end = self._decode_end = now + seconds
        self.busy_until = max(self.busy_until, end)
        apply_step(state, step, self.recorder, end, self.last_token_time)
        self.last_token_time = end
        self._step = (now, seconds, context, batch, len(step.preempted))
        return False

    # -- records -----------------------------------------------------------------------------------------------

    def _tell(self, now: float) -> None:
        """Rows for what has ended by ``now``: the decode step under way, else the time since it if prompts were
        computed. Called before batches that end now are taken off.
        """
        if self._step is not None:
            if self._decode_end > now:
                return
            start, seconds, context, batch, preempted = self._step
            self._step = None
            self._write(start, seconds, self._prompts(start, self._decode_end), context, batch, preempted)
            self._told = self._decode_end
        start = max(self._told, min([b.asked for _, _, b in self._batches], default=now))
        if now > start:
            self._write(start, now - start, self._prompts(start, now), 0, 0, 0)
            self._told = now

    def _prompts(self, low: float, high: float) -> int:
        tokens = self._owed + sum([b.computed_within(low, high) for _, _, b in self._batches])
        self._owed = 0
        return tokens

    def _write(self, start: float, seconds: float, prompts: int, context: float, decodes: int, preempted: int) -> None:
        state = self.state
        recorder = self.recorder
        computing = sum([len(b.step.chunks) for _, _, b in self._batches])
        recorder.mixed_buffer.extend(
            (
                start,
                seconds,
                context,
                decodes,
                prompts,
                computing,
                len(state.waiting),
                computing + decodes,
                state.pool.free,
                preempted,
            )
        )
        if len(recorder.mixed_buffer) > BUFFER:
            recorder.flush()


def _take(state: EngineState, request: Request) -> None:
    """Out of the waiting queue, wherever it stands there."""
    passed = []
    while (head := state.waiting.popleft()) is not request:
        passed.append(head)
    for other in reversed(passed):
        state.waiting.appendleft(other)


def _when(entry: tuple[float, Request]) -> float:
    return entry[0]
