"""Replays logs of the real vLLM scheduler and compares every step (``windtunnel check-schedule``).

A log (jsonl, optionally gzipped) holds one ``header`` (engine limits, fixed step time ``base + per_token x tokens``),
``request`` lines, ``step`` lines (ordered batch ``[id, tokens]``, preempted, resumed, prefix-hit tokens at first
admission, free blocks, times) and ``result`` lines (first token and end of each request).
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from simulator.cluster.simulation import simulate
from simulator.core.errors import TraceError
from simulator.cost.analytic import FixedCost
from simulator.replica.records import SimulationRecords
from simulator.scheduling import DECODE, EngineArgs, EngineState, Step
from traces.prefix import ensure_chained, from_rows
from traces.trace import Trace

TIME_TOLERANCE_S = 2e-6  # logs round step times to a microsecond


@dataclass(frozen=True, slots=True)
class LoggedStep:
    """One step as scheduled."""

    end: float  # s
    batch: list[tuple[str, int]]
    preempted: list[str]
    resumed: list[str]
    hits: dict[str, int]
    free: int

    def difference(self, other: LoggedStep) -> str | None:
        """The first field in which two steps differ, None when they are the same."""
        for name in ("batch", "preempted", "resumed", "hits", "free"):
            if getattr(self, name) != getattr(other, name):
                return name
        return None if abs(self.end - other.end) <= TIME_TOLERANCE_S else "end"


@dataclass(frozen=True, slots=True)
class ScheduleLog:
    """A parsed log."""

    path: Path
    args: EngineArgs
    num_gpu_blocks: int
    cost: FixedCost
    ids: list[str]  # request ids in trace order
    trace: Trace
    steps: list[LoggedStep]
    results: dict[str, tuple[float, float, int]]  # id -> (first token s, end s, preemptions)


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far a replay agrees with its log."""

    path: Path
    mode: str  # span | step
    matched: int
    total: int  # steps in the log
    difference: str | None = None  # what differs first, with both sides

    @property
    def ok(self) -> bool:
        return self.difference is None


def read_schedule_log(path: Path) -> ScheduleLog:
    """Parse a log. Raises TraceError naming file and line."""
    kinds: dict[str, list[Any]] = {kind: [] for kind in _READERS}
    number = 0  # of the line being read, for the message
    try:
        with gzip.open(path, "rt", encoding="utf8") if path.suffix == ".gz" else path.open(encoding="utf8") as lines:
            for number, line in enumerate(lines, 1):  # noqa: B007
                if line.strip():
                    ((kind, value),) = json.loads(line).items()
                    kinds[kind].append(_READERS[kind](value))
        number = 0
        if len(kinds["header"]) != 1:
            raise ValueError(f"{len(kinds['header'])} header lines, one is needed")
        return _log(path, kinds["header"][0], kinds["request"], kinds["step"], dict(kinds["result"]))
    except (OSError, EOFError, zlib.error) as error:
        raise TraceError(f"cannot be read ({error}).", where=str(path), remedy="Give a schedule log.") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise TraceError(
            f"not a schedule log: {type(error).__name__}: {error}.",
            where=f"{path}:{number}" if number else str(path),
            remedy="Each line is one of header, request, step, result; see the module's description.",
        ) from error


def _log(
    path: Path,
    engine: tuple[EngineArgs, int, FixedCost],
    requests: list[_Request],
    steps: list[LoggedStep],
    results: dict[str, tuple[float, float, int]],
) -> ScheduleLog:
    args, num_gpu_blocks, cost = engine
    if len({r.id for r in requests}) != len(requests):
        raise ValueError("two requests have the same id")
    if args.scheduling_policy == "priority":  # vLLM breaks ties of priority and arrival by id
        requests = sorted(requests, key=lambda r: (r.arrival, r.id))
    else:
        requests = sorted(requests, key=lambda r: r.arrival)
    blocks = from_rows([r.blocks for r in requests], args.block_size)
    trace = Trace(
        arrival=np.array([r.arrival for r in requests], dtype=np.float64),
        prompt_tokens=np.array([r.prompt_tokens for r in requests], dtype=np.int64),
        output_tokens=np.array([r.output_tokens for r in requests], dtype=np.int64),
        priority=np.array([r.priority for r in requests], dtype=np.int64),
        prefix=ensure_chained(blocks) if args.enable_prefix_caching else None,
        source=str(path),
    )
    return ScheduleLog(path, args, num_gpu_blocks, cost, [r.id for r in requests], trace, steps, results)


def _engine(header: dict[str, Any]) -> tuple[EngineArgs, int, FixedCost]:
    """Engine arguments, KV blocks and step times of a header line."""
    seconds = header["step_seconds"]
    cost = FixedCost(float(seconds["base"]), float(seconds["per_token"]))
    if not (0 <= cost.base_s < inf and 0 <= cost.per_token_s < inf and cost.base_s + cost.per_token_s > 0):
        raise ValueError(f"step_seconds {seconds} are no durations")
    if header["policy"] not in {"fcfs", "priority"}:
        raise ValueError(f"policy {header['policy']!r} is neither fcfs nor priority")
    args = EngineArgs(
        policy="vllm",
        scheduling_policy=header["policy"],
        max_num_seqs=_positive(header, "max_num_seqs"),
        max_num_batched_tokens=_positive(header, "max_num_batched_tokens"),
        max_model_len=_positive(header, "max_model_len"),
        block_size=_positive(header, "block_size"),
        enable_prefix_caching=bool(header["enable_prefix_caching"]),
        long_prefill_token_threshold=int(header["long_prefill_token_threshold"]),
        scheduler_reserve_full_isl=bool(header["scheduler_reserve_full_isl"]),
        watermark=float(header.get("watermark", 0.0)),
        async_scheduling="Async" in str(header["scheduler"]),
    )
    return args, _positive(header, "num_gpu_blocks"), cost


def _positive(header: dict[str, Any], name: str) -> int:
    value = int(header[name])
    if value < 1:
        raise ValueError(f"{name} must be >= 1, not {value}")
    return value


@dataclass(frozen=True, slots=True)
class _Request:
    id: str
    arrival: float  # s
    prompt_tokens: int
    output_tokens: int
    blocks: list[int]
    priority: int


def _request(value: dict[str, Any]) -> _Request:
    return _Request(
        id=str(value["id"]),
        arrival=float(value["arrival"]),
        prompt_tokens=int(value["prompt_len"]),
        output_tokens=int(value["out"]),
        blocks=[int(block) for block in value["blocks"]],
        priority=int(value.get("priority", 0)),
    )


def _step(value: dict[str, Any]) -> LoggedStep:
    return LoggedStep(
        end=float(value["end"] if "end" in value else value["t"]),
        batch=[(str(name), int(tokens)) for name, tokens in value["batch"]],
        preempted=sorted(map(str, value["preempted"])),  # vLLM keeps sets of them: their order says nothing
        resumed=sorted(map(str, value["resumed"])),
        hits={str(name): int(tokens) for name, tokens in value["hits"].items()},
        free=int(value["free"]),
    )


def _result(value: dict[str, Any]) -> tuple[str, tuple[float, float, int]]:
    return str(value["id"]), (float(value["first"]), float(value["end"]), int(value["preempt"]))


_READERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "header": _engine,
    "request": _request,
    "step": _step,
    "result": _result,
}


@dataclass(slots=True)
class _Span:
    """A plan and what the state looked like then: enough to write down its steps once their number is known."""

    begin: float
    step: LoggedStep  # the first one; ``end`` and ``free`` are filled in later
    run: bool
    token_steps: int
    free: int  # blocks, before the decodes take theirs
    needs: list[int]  # blocks each of the next ``block_size`` token steps takes


class _Watcher:
    """Writes the log that vLLM's scheduler would have written."""

    def __init__(self, log: ScheduleLog, step_s: FixedCost) -> None:
        self.names = log.ids
        self.step_s = step_s
        self.after_scheduling = bool(log.args.async_scheduling)  # when the log reads the free blocks
        self.steps: list[LoggedStep] = []
        self._open: list[_Span] = []  # plans whose steps are not written down yet
        self._admitted: set[int] = set()

    def settled(self, now: float, state: EngineState) -> None:
        self._write(state, settled=True)

    def planned(self, now: float, begin: float, step: Step, state: EngineState) -> None:
        self._write(state, settled=False)
        chunks = {request: tokens for request, (tokens, _) in zip(step.requests, step.chunks, strict=True)}
        held = set(step.held)
        batch: list[tuple[str, int]] = []
        need = 0
        size = state.block_size
        for request in state.running:
            if request in chunks:
                batch.append((self.names[request.row], chunks[request]))
            elif request.decoding and request not in held and step.decodes:
                batch.append((self.names[request.row], 1))
                need += (request.offset + state.token_steps) % size == 0
        fresh = [request for request in step.admitted if request.row not in self._admitted]
        self._admitted.update(request.row for request in fresh)
        logged = LoggedStep(
            end=0.0,
            batch=batch,
            preempted=sorted(self.names[request.row] for request in step.preempted),
            resumed=sorted(self.names[request.row] for request in step.admitted if request not in fresh),
            hits={self.names[r.row]: r.cached_tokens for r in fresh if r.cached_tokens},
            free=0,
        )
        if step is DECODE:
            needs = [state.blocks_over(k + 1) - state.blocks_over(k) for k in range(size)]
        else:
            needs = [need]
        self._open.append(_Span(begin, logged, step is DECODE, state.token_steps, state.pool.free, needs))

    def _write(self, state: EngineState, *, settled: bool) -> None:
        """Write down the plans that have been applied. With synchronous scheduling free blocks are read after the
        step, when finished requests have gone: that is what the settled state shows."""
        for span in self._open:
            first = span.step
            tokens = sum(count for _, count in first.batch)
            seconds = self.step_s.base_s + self.step_s.per_token_s * tokens
            steps = state.token_steps - span.token_steps if span.run else 1
            end, free = span.begin, span.free
            for k in range(steps):
                end += seconds
                free -= span.needs[k % len(span.needs)]
                last = k == steps - 1
                seen = state.pool.free if last and settled and not self.after_scheduling else free
                fresh = first if k == 0 else LoggedStep(0.0, first.batch, [], [], {}, 0)
                self.steps.append(LoggedStep(end, fresh.batch, fresh.preempted, fresh.resumed, fresh.hits, seen))
        self._open = []


def check_schedule(log: ScheduleLog, *, step_mode: bool) -> Comparison:
    """Replay ``log``'s requests on the ``vllm`` policy with the log's step times and compare step by step."""
    watcher = _Watcher(log, log.cost)
    records = simulate(
        log.trace,
        log.args,
        log.cost,
        log.num_gpu_blocks,
        max_model_len=log.args.max_model_len,
        step_mode=step_mode,
        observer=watcher,
        sequential=True,
    )
    return _compare(log, watcher.steps, records, "step" if step_mode else "span")


def _compare(log: ScheduleLog, ours: list[LoggedStep], records: SimulationRecords, mode: str) -> Comparison:
    total = len(log.steps)
    for number, (theirs, mine) in enumerate(zip(log.steps, ours, strict=False)):
        name = theirs.difference(mine)
        if name is not None:
            text = f"step {number} (ends {theirs.end:.6f} s) differs in {name}:\n" + _both_sides(
                getattr(theirs, name), getattr(mine, name)
            )
            return Comparison(log.path, mode, number, total, text)
    matched = min(total, len(ours))
    if len(ours) != total:
        return Comparison(log.path, mode, matched, total, f"the log has {total} steps, the simulator {len(ours)}")
    return Comparison(log.path, mode, matched, total, _compare_results(log, records))


def _both_sides(theirs: Any, mine: Any) -> str:
    """Both values; of long lists, the part from the first difference on."""
    if isinstance(theirs, list) and isinstance(mine, list):
        same = next(
            (i for i, (a, b) in enumerate(zip(theirs, mine, strict=False)) if a != b), min(len(theirs), len(mine))
        )
        shown = slice(max(same - 1, 0), same + 6)
        theirs, mine = f"[{same}:] {theirs[shown]!r} of {len(theirs)}", f"[{same}:] {mine[shown]!r} of {len(mine)}"
        return f"  log:       {theirs}\n  simulator: {mine}"
    return f"  log:       {theirs!r}\n  simulator: {mine!r}"


def _compare_results(log: ScheduleLog, records: SimulationRecords) -> str | None:
    requests = records.requests
    for row, name in enumerate(log.ids):
        if name not in log.results:
            continue
        mine = (float(requests.first_token[row]), float(requests.finish[row]), int(requests.preemptions[row]))
        theirs = log.results[name]
        if theirs[2] != mine[2] or not all(
            abs(a - b) <= TIME_TOLERANCE_S for a, b in zip(theirs[:2], mine[:2], strict=True)
        ):
            return (
                f"request {name} differs (first token, end, preemptions):\n  log:       {theirs}\n  simulator: {mine}"
            )
    return None


__all__ = ["Comparison", "ScheduleLog", "check_schedule", "read_schedule_log"]
