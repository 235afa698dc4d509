"""Programs: requests that wait for each other's answers. Each request of a trace starts one, with its prompt as input.

A program is a session whose turns name the turns they wait for (the trace's column ``after``). ``gap_s`` passes between
an answer and the calls that use it: a client's round trip, or nothing where the service knows the program (Parrot).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from simulator.core.errors import TraceError
from traces.trace import After, Ints, PrefixBlocks, Trace


@dataclass(frozen=True, slots=True)
class Call:
    """One request of a program. after: indices of calls it waits for. branch: whose text it continues, -1: nobody's."""

    prompt_tokens: int
    output_tokens: int
    after: tuple[int, ...] = ()
    branch: int = -1


def chain(trace: Trace, *, chunk_tokens: int, output_tokens: int, gap_s: float = 0.0) -> Trace:
    """The prompt is a document: each call gets the next chunk of it and the summary so far, and writes a new one."""

    def calls(prompt: int) -> list[Call]:
        made = []
        for index, start in enumerate(range(0, prompt, chunk_tokens)):
            chunk = min(chunk_tokens, prompt - start)
            made.append(Call(chunk + (output_tokens if index else 0), output_tokens, (index - 1,) if index else ()))
        return made

    _at_least_one(trace, "chain", chunk_tokens=chunk_tokens, output_tokens=output_tokens)
    return _programs(trace, [calls(prompt) for prompt in trace.prompt_tokens.tolist()], gap_s)


def map_reduce(trace: Trace, *, chunk_tokens: int, output_tokens: int, gap_s: float = 0.0) -> Trace:
    """The prompt is a document: every chunk is summarised by itself, then the summaries together."""

    def calls(prompt: int) -> list[Call]:
        maps = [Call(min(chunk_tokens, prompt - start), output_tokens) for start in range(0, prompt, chunk_tokens)]
        return [*maps, Call(len(maps) * output_tokens, output_tokens, tuple(range(len(maps))))]

    _at_least_one(trace, "map_reduce", chunk_tokens=chunk_tokens, output_tokens=output_tokens)
    return _programs(trace, [calls(prompt) for prompt in trace.prompt_tokens.tolist()], gap_s)


def branches(  # noqa: PLR0913 - a reasoning program's shape
    trace: Trace, rng: np.random.Generator, *, count: int, rounds: int, round_tokens: int, stop_share: float = 0.0,
    stop_rounds: int = 1, gang: bool = False, gap_s: float = 0.0, block_tokens: int = 16,
) -> Trace:  # fmt: skip
    """``count`` lines of thought over the same prompt, each of ``rounds`` times ``round_tokens`` tokens.

    After a round, all lines are looked at; ``stop_share`` of the programs, drawn at random, are sure enough after
    ``stop_rounds`` and stop (Dynasor, arXiv:2412.20993; that their answers stay right is an input). gang: all requests
    of a program have its place in the order of arrival as their priority. Blocks of ``block_tokens`` are shared between
    the lines (the prompt) and by the rounds of a line.
    """
    _at_least_one(
        trace, "branches", count=count, rounds=rounds, round_tokens=round_tokens, stop_rounds=stop_rounds,
        block_tokens=block_tokens,
    )  # fmt: skip
    if not 0 <= stop_share <= 1:
        raise TraceError(f"branches: stop_share must lie in [0, 1], not {stop_share}", where=trace.source)
    early = rng.random(len(trace)) < stop_share
    made = []
    for prompt, stops in zip(trace.prompt_tokens.tolist(), early.tolist(), strict=True):
        last = min(stop_rounds, rounds) if stops else rounds
        made.append(
            [
                Call(
                    prompt + turn * round_tokens,
                    round_tokens,
                    tuple(range((turn - 1) * count, turn * count)) if turn else (),
                    line,
                )
                for turn in range(last)
                for line in range(count)
            ]
        )
    found = _programs(trace, made, gap_s)
    assert found.session is not None
    found = replace(found, prefix=_branch_blocks(trace.prompt_tokens, made, block_tokens))
    return replace(found, priority=found.session) if gang else found


def _programs(trace: Trace, made: Sequence[Sequence[Call]], gap_s: float) -> Trace:
    """Labels, tenants and priorities are those of the request that starts a program; its blocks are not kept."""
    if not 0 <= gap_s < float("inf"):
        raise TraceError(f"gap_s must be >= 0 and finite, not {gap_s}", where=trace.source)
    if trace.session is not None:
        raise TraceError(
            "requests of this trace already belong to conversations", where=trace.source,
            remedy="Use a trace of single requests.",
        )  # fmt: skip
    counts = np.array([len(calls) for calls in made])
    program = np.repeat(np.arange(len(trace)), counts)
    calls = [call for of_one in made for call in of_one]
    waits = np.array([bool(call.after) for call in calls])
    return replace(
        replace(trace, prefix=None, chunks=None).select(program),
        prompt_tokens=np.array([call.prompt_tokens for call in calls]),
        output_tokens=np.array([call.output_tokens for call in calls]),
        session=program,
        turn=np.arange(len(calls)) - np.repeat(np.cumsum(counts) - counts, counts),
        think_time=np.where(waits, gap_s, np.nan),
        after=After.of([call.after for call in calls]),
    )


def _branch_blocks(prompts: Ints, made: Sequence[Sequence[Call]], block_tokens: int) -> PrefixBlocks:
    """Ids of full blocks: a program's lines share those of the prompt, a line's rounds all that came before."""
    rows: list[Ints] = []
    first = 0
    for prompt, calls in zip(prompts.tolist(), made, strict=True):
        shared = prompt // block_tokens
        longest = max(call.prompt_tokens for call in calls) // block_tokens - shared
        for call in calls:
            own = first + shared + call.branch * longest + np.arange(call.prompt_tokens // block_tokens - shared)
            rows.append(np.concatenate((first + np.arange(shared), own)))
        first += shared + longest * (1 + max(call.branch for call in calls))
    offsets = np.concatenate(([0], np.cumsum([len(row) for row in rows])))
    return PrefixBlocks(offsets, np.concatenate(rows) if rows else np.empty(0, np.int64), block_tokens)


def _at_least_one(trace: Trace, what: str, **values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise TraceError(f"{what}: {name} must be >= 1, not {value}", where=trace.source)
