"""Requests that change engines: called between two steps, through ``Engine.at_next_step``."""

from __future__ import annotations

from math import inf

from simulator.kv.prefix import BlockTable
from simulator.replica.engine import Engine
from simulator.replica.nodes import NodesEngine
from simulator.replica.pipeline import PipelineEngine
from simulator.replica.steps import record_gone, record_moves, release_ended
from simulator.scheduling.request import Request
from simulator.scheduling.step import Step

AnyEngine = Engine | PipelineEngine | NodesEngine  # where something moves, the last is refused


def elsewhere(request: Request, *, computed: int = 0) -> Request:
    """The same request for another engine; computed: tokens whose KV goes along."""
    table = None if request.table is None else BlockTable(request.table.ids)
    other = Request(request.row, request.arrival, request.prompt_tokens, request.output_tokens, request.priority, table)
    other.tenant, other.slo_class = request.tenant, request.slo_class
    other.session, other.pause_s = request.session, request.pause_s
    other.target = request.target
    other.computed = other.cached_tokens = computed
    other.preemptions = request.preemptions
    if request.preemptions:
        other.lost = request.lost
    return other


def take_out(engine: AnyEngine, request: Request) -> tuple[int, float]:
    """A decoding request leaves with the KV it has; its blocks are free. Returns how many tokens of KV that is, and
    when its last token comes (it may be in flight), s.

    Raises KeyError when it is not decoding, as when it has ended meanwhile.
    """
    if not request.decoding:
        raise KeyError(request)
    state = engine.state
    lane = state.lanes[request.lane]
    computed = lane.computed_of(request)
    stays = request.first_token_step == lane.token_steps  # it has decoded nothing since it joined the batch
    last_token = engine.recorder.range_start[request.row] if stays else engine.token_time(request.lane)
    step = Step(decodes=False)
    state.detach(request, step)
    record_moves(state, step, engine.recorder, inf, inf)
    request.preemptions -= 1  # nothing is lost
    engine.recorder.preemptions[request.row] = request.preemptions
    return computed, last_token


def evacuate(engine: AnyEngine) -> list[Request]:
    """The engine fails after the step in flight: everybody goes, in order of admission and then of the queue, and must
    compute all tokens again. Returns the requests for other engines. Those whose last step is in flight end there.
    """
    state = engine.state
    step = Step(decodes=False)
    release_ended(state, engine.recorder, inf, engine.on_finish)
    gone = [request for request in list(state.running) if state.detach(request, step)]
    record_moves(state, step, engine.recorder, inf, inf)
    while state.swapped:
        request = state.swapped.popleft()
        request.target = request.computed + 1
        record_gone(request, engine.recorder)
        gone.append(request)
    if state.asides is not None:
        gone.extend(state.asides.recall())
    while state.waiting:
        gone.append(state.waiting.popleft())
    return [elsewhere(request) for request in gone]


def land(engine: AnyEngine, request: Request, last_token_time: float) -> bool:
    """A request whose ``computed`` tokens have arrived, in blocks taken before, decodes from the next step on.

    last_token_time: of the token it decodes from, s. False when all ``max_num_seqs`` are taken: try again.
    """
    state = engine.state
    if len(state.running) >= state.args.max_num_seqs:
        return False
    recorder, row = engine.recorder, request.row
    recorder.range_start[row] = last_token_time
    if recorder.scheduled[row] != recorder.scheduled[row]:  # never written
        recorder.scheduled[row] = last_token_time
    (engine.next_lane if isinstance(engine, PipelineEngine) else state).land(request)
    return True


def restore(engine: AnyEngine, request: Request, blocks: int) -> bool:
    """A request whose first ``computed`` tokens have come from a copy computes the rest of what is known here: its
    prompt and the tokens it has made. Takes the ``blocks`` they need. False when all ``max_num_seqs`` are taken.
    """
    state = engine.state
    if len(state.running) >= state.args.max_num_seqs:
        return False
    state.pool.take(blocks)
    state.restore(request)
    return True


def resume(engine: AnyEngine, request: Request) -> bool:
    """The same for a request that computes the last token of its prompt here, in the next step."""
    state = engine.state
    if len(state.running) >= state.args.max_num_seqs:
        return False
    state.resume(request)
    return True
