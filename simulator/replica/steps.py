"""What one planned step does to the state and to the records: shared by every kind of engine."""

from __future__ import annotations

from collections.abc import Callable

from simulator.replica.recorder import Recorder
from simulator.replica.records import Status
from simulator.scheduling.request import Request
from simulator.scheduling.state import EngineState
from simulator.scheduling.step import Step

FINISHED = int(Status.FINISHED)

OnFinish = Callable[[Request, float], None]
Action = Callable[[float], bool]  # (time) -> done; else it is called again before the next step


def batch_sums(state: EngineState, step: Step) -> tuple[int, int]:
    """Context and windowed context that the decodes of a step read, tokens: ``step.held`` left out."""
    context = state.computed_sum + state.num_decodes
    windowed = 0 if state.window is None else state.windowed_sum
    for request in step.held:
        length = state.computed_of(request) + 1
        context -= length
        if state.window is not None:
            windowed -= min(length, state.window)
    return context, windowed


def batch_spread(state: EngineState, step: Step) -> tuple[int, int]:
    """Longest context and sum of squared contexts of the decodes of a step, tokens: ``step.held`` left out of the
    squares. The longest may be one that is held: too few steps hold anybody to search for the next one.
    """
    longest, squares = state.spread() if state.num_decodes > len(step.held) else (0, 0)
    for request in step.held:
        squares -= (state.computed_of(request) + 1) ** 2
    return longest, squares


def apply_step(state: EngineState, step: Step, recorder: Recorder, end: float, last_token_time: float) -> None:
    """Advance everybody in a step that ends at ``end``.

    last_token_time: end of the previous step with decodes, s.
    """
    held = _hold_back(state, step, recorder, last_token_time) if step.held and step.decodes else ()
    done: list[Request] = []
    if step.decodes and state.advance(1):
        done = state.ended()
    for request, left in held:
        state.join(request, left)
    for request in step.completed:
        row = request.row
        if request.target == request.prompt_tokens:
            recorder.first_token[row] = end
        recorder.range_start[row] = end
        left = request.prompt_tokens + request.output_tokens - request.target - 1 + request.padding
        if left > 0:
            state.join(request, left)
        else:
            request.lane = state.lane
            request.first_token_step = request.last_step = state.token_steps
            done.append(request)
    if done:
        if len(done) > 1:
            done.sort(key=_order)
        state.releasing.extend([(end, request) for request in done])


def record_moves(state: EngineState, step: Step, recorder: Recorder, now: float, last_token_time: float) -> None:
    """Write down who was admitted and who was preempted, before the step is applied."""
    for request in step.preempted:
        row = request.row
        recorder.preemptions[row] = request.preemptions
        if request.computed:  # swapped out: it goes on after the token it has
            _pause(state, request, recorder, last_token_time)
        elif request.first_token_step >= 0:
            lane = state.lanes[request.lane]
            if request.last_step > lane.token_steps:  # else its last token is on the way, and it resumes nothing
                _close_range(lane, request, recorder)
                request.first_token_step = -1
    for request in step.admitted:
        if not request.preemptions:
            row = request.row
            recorder.scheduled[row] = now
            recorder.cached[row] = request.cached_tokens


def release_ended(state: EngineState, recorder: Recorder, now: float, on_finish: OnFinish | None) -> None:
    """Let the requests go whose last step has ended by ``now``."""
    releasing = state.releasing
    while releasing and releasing[0][0] <= now:
        end, request = releasing.popleft()
        row = request.row
        recorder.finish[row] = end
        recorder.status[row] = FINISHED
        recorder.first_step[row] = request.first_token_step
        recorder.last_step[row] = request.last_step - request.padding
        if state.keeps:
            state.keep(request)
        else:
            state.release(request)
        if on_finish is not None:
            on_finish(request, end)


def record_unfinished(state: EngineState, recorder: Recorder) -> None:
    """Write down how far the running requests have come when the simulation stops."""
    for lane in state.lanes:
        lane.flush()
    for request in state.running:
        if request.decoding:
            recorder.first_step[request.row] = request.first_token_step
            done = state.lanes[request.lane].token_steps
            recorder.last_step[request.row] = min(done, request.last_step - request.padding)
    for _, request in state.releasing:  # the last token is on its way
        recorder.first_step[request.row] = request.first_token_step
        recorder.last_step[request.row] = request.last_step - request.padding


def _close_range(state: EngineState, request: Request, recorder: Recorder) -> None:
    """A request stops decoding before it is done: its token steps so far are a range of their own."""
    row = request.row
    start = recorder.range_start[row]
    recorder.extra_ranges.append((row, request.first_token_step, state.token_steps, start, recorder.replica))


def _hold_back(state: EngineState, step: Step, recorder: Recorder, last_token_time: float) -> list[tuple[Request, int]]:
    """Decoding requests that this step leaves out: their range of token steps ends here and resumes after it."""
    held: list[tuple[Request, int]] = []
    for request in step.held:
        _pause(state, request, recorder, last_token_time)
        held.append((request, request.last_step - state.token_steps))
        state.leave(request)
    return held


def _pause(state: EngineState, request: Request, recorder: Recorder, last_token_time: float) -> None:
    """A request sits out: its range ends with the token it has, from which the next one starts."""
    if request.first_token_step < state.token_steps:
        _close_range(state, request, recorder)
        recorder.range_start[request.row] = last_token_time


def record_gone(request: Request, recorder: Recorder) -> None:
    """A request that sits out goes on elsewhere: the token that it has is a range of its own, if it is in none yet."""
    row, step = request.row, request.first_token_step
    recorder.extra_ranges.append((row, step, step, recorder.range_start[row], recorder.replica))


def _order(request: Request) -> int:
    return request.order
