"""Token times, rebuilt from records: which request made a token at the end of which step, and the gaps between.

A replica numbers its *token steps*; a request names ranges of them. The tokens of a request are, in order: one at
each range's start time (the first token, or the one that a recompute after preemption ends with) and one at the end
of each token step of the range. All gaps follow, and pooled ITL percentiles need one count per token step, not one
number per token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.metrics.stats import Floats, Ints, grouped
from simulator.replica.records import SimulationRecords, StepRecords, StepTokens

Bools = np.ndarray[tuple[int], np.dtype[np.bool_]]

ROUNDING_S = 1e-9  # a token seen as the end of one range and the start of the next may differ in the last bits


@dataclass(frozen=True, slots=True)
class TokenClock:
    """End times of every token step of every replica, replicas one after the other.

    ``ends[offsets[r] + k]`` is when token step ``k`` of replica ``r`` ended, s. Where requests advance on their own,
    each has token steps of its own, and time goes back between those of two requests.
    """

    ends: Floats  # (token steps,)
    offsets: Ints  # (replicas + 1,)


@dataclass(frozen=True, slots=True)
class TokenRanges:
    """All ranges of all requests, ordered by request and time. Positions are indices into ``TokenClock.ends``."""

    request: Ints  # (m,)
    start: Floats  # (m,) s, time of the token right before the range
    begin: Ints  # (m,)
    end: Ints  # (m,) exclusive; == begin: no token step
    end_time: Floats  # (m,) s, last token of the range
    stall: Floats  # (m,) s between the last token of the request's previous range and ``start``; NaN: none
    replica: Ints  # (m,) that made the tokens
    tokens: Ints | None = None  # (sum of end - begin,) made in each step of each range; None: one each


def span_seconds(steps: StepRecords) -> Floats:
    """Duration of every span, s (closed form of the contract in ``records.py``)."""
    n = steps.num_steps.astype(np.float64)
    return np.asarray(n * steps.step + steps.increment * n * (n - 1.0) / 2.0)


def token_clock(records: SimulationRecords) -> TokenClock:
    """Expand spans with decodes to one end time per token step."""
    steps, replicas = records.steps, num_replicas(records)
    rows = np.flatnonzero((steps.num_decodes > 0) & (steps.num_steps > 0))
    if records.token_ends:
        rows = rows[~np.isin(steps.replica[rows], list(records.token_ends))]
    per_replica = np.zeros(replicas, dtype=np.int64)
    np.maximum.at(per_replica, steps.replica[rows], (steps.first_token_step + steps.num_steps)[rows])
    for replica, own in records.token_ends.items():
        per_replica[replica] = len(own)
    offsets = np.concatenate([[0], np.cumsum(per_replica)])
    ends = np.full(int(offsets[-1]), np.nan)
    for replica, mine in enumerate(grouped(steps.replica[rows], replicas)):  # one at a time bounds the temporaries
        where, when = _expand(steps, rows[mine])
        ends[offsets[replica] + where] = when
    for replica, own in records.token_ends.items():
        ends[offsets[replica] : offsets[replica + 1]] = own
    return TokenClock(ends, offsets)


def _expand(steps: StepRecords, rows: Ints) -> tuple[Ints, Floats]:
    """Token step numbers and end times of the given spans."""
    counts = steps.num_steps[rows]
    total = int(counts.sum())
    before = np.cumsum(counts) - counts
    j = np.arange(total, dtype=np.int64) - np.repeat(before, counts)
    when: Floats = (j + 1).astype(np.float64)
    when *= 0.5 * j
    when *= np.repeat(steps.increment[rows], counts)
    when += (j + 1.0) * np.repeat(steps.step[rows], counts)
    when += np.repeat(steps.start[rows], counts)
    number: Ints = np.repeat(steps.first_token_step[rows], counts) + j
    return number, when


def num_replicas(records: SimulationRecords) -> int:
    """Replicas of the run, those without a step included."""
    seen = int(records.steps.replica.max()) + 1 if len(records.steps.replica) else 0
    return max(seen, len(records.num_gpu_blocks))


def token_ranges(records: SimulationRecords, clock: TokenClock) -> TokenRanges:
    """Gather the ranges of the columns and of ``extra_ranges``, in time order per request."""
    requests = records.requests
    extra = requests.extra_ranges.reshape(-1, 5)
    routed = np.flatnonzero((requests.replica >= 0) & ~np.isnan(requests.first_token))
    owner = np.concatenate([extra[:, 0].astype(np.int64), routed])
    start = np.concatenate([extra[:, 3], requests.range_start[routed]])
    begin = np.concatenate([extra[:, 1].astype(np.int64), requests.first_token_step[routed]])
    end = np.concatenate([extra[:, 2].astype(np.int64), requests.last_token_step[routed]])
    start = np.where(np.isnan(start), requests.first_token[owner], start)
    replica = np.concatenate([extra[:, 4].astype(np.int64), requests.replica[routed]])
    if len(extra):
        order = np.lexsort((-end, begin, start, owner))
        # A request preempted and never resumed may name its last range twice: once there, once here. One that moved
        # before it had decoded anything names an empty range before the one that begins with the same token.
        order = order[_is_new(owner[order], start[order], begin[order])]
        owner, start, begin, end, replica = owner[order], start[order], begin[order], end[order], replica[order]
    empty = (begin < 0) | (end <= begin)
    offset = clock.offsets[replica]
    begin = np.where(empty, 0, begin) + offset
    end = np.where(empty, begin, end + offset)
    end_time = start.copy()
    end_time[~empty] = clock.ends[end[~empty] - 1]
    told = records.step_tokens
    tokens = None if told is None else _step_tokens(told, owner, end - begin, told.speculates[replica])
    return TokenRanges(owner, start, begin, end, end_time, _stalls(owner, start, end_time), replica, tokens)


def _step_tokens(told: StepTokens, owner: Ints, steps: Ints, speculates: Bools) -> Ints:
    """Tokens of every step of every range, which are ordered by request. speculates: whether a range's replica does."""
    needed = np.bincount(owner[speculates], weights=steps[speculates], minlength=len(told.steps)).astype(np.int64)
    assert (told.steps == needed).all()
    tokens = np.ones(int(steps.sum()), dtype=np.int64)
    tokens[np.repeat(speculates, steps)] = told.tokens
    return tokens


def _chosen_steps(ranges: TokenRanges, chosen: Bools) -> Bools:
    """Mask of ``ranges.tokens``: steps of the chosen ranges (m,)."""
    return np.repeat(chosen, ranges.end - ranges.begin)


def _steps_of(ranges: TokenRanges) -> Ints:
    """Position in ``TokenClock.ends`` of every step of every range, as ``ranges.tokens`` lists them."""
    lengths = ranges.end - ranges.begin
    within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.asarray(np.repeat(ranges.begin, lengths) + within)


def _is_new(owner: Ints, start: Floats, begin: Ints) -> Bools:
    new = np.ones(len(owner), dtype=bool)
    new[1:] = (owner[1:] != owner[:-1]) | (start[1:] != start[:-1]) | (begin[1:] != begin[:-1])
    return new


def _stalls(owner: Ints, start: Floats, end_time: Floats) -> Floats:
    """Gap from the previous range's last token to ``start``; NaN for a first range or when they are one token."""
    stall = np.full(len(owner), np.nan)
    follows = owner[1:] == owner[:-1]
    gap = start[1:] - end_time[:-1]
    stall[1:] = np.where(follows & (gap > ROUNDING_S), gap, np.nan)
    return stall


def tokens_made(ranges: TokenRanges, num_requests: int) -> Ints:
    """Tokens of each request (n,) by its ranges; equals ``output_tokens`` of a finished request (invariant 4)."""
    made = np.bincount(ranges.request, weights=ranges.end - ranges.begin, minlength=num_requests)
    starts = ~np.isnan(ranges.stall) | _is_first(ranges.request)
    made += np.bincount(ranges.request, weights=starts, minlength=num_requests)
    if ranges.tokens is not None:
        of_step = np.repeat(ranges.request, ranges.end - ranges.begin)
        made += np.bincount(of_step, weights=ranges.tokens - 1, minlength=num_requests)
    return made.astype(np.int64)


def _is_first(owner: Ints) -> Bools:
    first = np.ones(len(owner), dtype=bool)
    first[1:] = owner[1:] != owner[:-1]
    return first


def first_gaps(ranges: TokenRanges, clock: TokenClock) -> Floats:
    """Gap from each range's start to its first token step (m,); NaN for an empty range."""
    gaps = np.full(len(ranges.request), np.nan)
    some = ranges.end > ranges.begin
    gaps[some] = clock.ends[ranges.begin[some]] - ranges.start[some]
    return gaps


def step_gaps(clock: TokenClock) -> Floats:
    """Gap before each token step since the replica's previous one (token steps,); 0 for a replica's first."""
    gaps = np.diff(clock.ends, prepend=np.nan)
    starts = clock.offsets[:-1][clock.offsets[:-1] < clock.offsets[1:]]
    gaps[starts] = 0.0
    return gaps


def pooled_gaps(ranges: TokenRanges, clock: TokenClock, selected: Bools) -> tuple[Floats, Ints]:
    """Every inter-token gap of the selected requests as ``(gap_s, how_many)``, exact.

    selected: (requests,) mask. A token step's gap counts once for every range that holds it and the step before;
    first gaps of ranges and stalls after preemption come one by one. Tokens that a step makes together have no gap
    between them.
    """
    mine = selected[ranges.request]
    some = mine & (ranges.end > ranges.begin)
    size = len(clock.ends) + 1
    counts = np.bincount(ranges.begin[some] + 1, minlength=size + 1)
    counts -= np.bincount(ranges.end[some], minlength=size + 1)
    np.cumsum(counts, out=counts)
    counts = counts[: len(clock.ends)]
    covered = counts > 0
    single = np.concatenate([first_gaps(ranges, clock)[some], ranges.stall[mine & ~np.isnan(ranges.stall)]])
    gaps = np.concatenate([step_gaps(clock)[covered], single])
    times = np.concatenate([counts[covered], np.ones(len(single), dtype=np.int64)])
    if ranges.tokens is None:
        return gaps, times
    together = int((ranges.tokens[_chosen_steps(ranges, mine)] - 1).sum())
    return np.append(gaps, 0.0), np.append(times, together)


def exceeds_itl(ranges: TokenRanges, clock: TokenClock, limit_s: float, num_requests: int) -> Bools:
    """Mask (requests,): some gap between two tokens of the request is longer than ``limit_s``."""
    late = np.concatenate([[0], np.cumsum(step_gaps(clock) > limit_s)])
    some = ranges.end > ranges.begin
    inside = np.zeros(len(some), dtype=bool)
    inside[some] = late[ranges.end[some]] > late[ranges.begin[some] + 1]
    with np.errstate(invalid="ignore"):
        worse = inside | (first_gaps(ranges, clock) > limit_s) | (ranges.stall > limit_s)
    return np.bincount(ranges.request, weights=worse, minlength=num_requests) > 0


def tokens_of(ranges: TokenRanges, clock: TokenClock, selected: Bools) -> tuple[Floats, Ints]:
    """When the selected requests made tokens: ``(time_s, how_many)``, unordered, exact."""
    mine = selected[ranges.request]
    some = mine & (ranges.end > ranges.begin)
    counts = np.bincount(ranges.begin[some], minlength=len(clock.ends) + 1)
    counts -= np.bincount(ranges.end[some], minlength=len(clock.ends) + 1)
    np.cumsum(counts, out=counts)
    counts = counts[: len(clock.ends)]
    covered = counts > 0
    if ranges.tokens is not None:
        kept = _chosen_steps(ranges, mine)
        counts = np.bincount(_steps_of(ranges)[kept], weights=ranges.tokens[kept], minlength=len(clock.ends)).astype(
            np.int64
        )
        covered = counts > 0
    single = ranges.start[mine & (~np.isnan(ranges.stall) | _is_first(ranges.request))]
    times = np.concatenate([clock.ends[covered], single])
    return times, np.concatenate([counts[covered], np.ones(len(single), dtype=np.int64)])


def gaps_by_request(ranges: TokenRanges, clock: TokenClock, num_requests: int) -> list[list[float]]:
    """ITL list of every request, in token order. One float per token: for detailed exports of modest runs."""
    out: list[list[float]] = [[] for _ in range(num_requests)]
    before = np.cumsum(ranges.end - ranges.begin) - (ranges.end - ranges.begin)
    for k, request in enumerate(ranges.request.tolist()):
        if not np.isnan(ranges.stall[k]):
            out[request].append(float(ranges.stall[k]))
        ends = clock.ends[ranges.begin[k] : ranges.end[k]]
        gaps = np.diff(ends, prepend=ranges.start[k])
        if ranges.tokens is not None:  # a step's first token comes after the gap, the others with it
            made = ranges.tokens[before[k] : before[k] + len(ends)]
            spread = np.zeros(int(made.sum()))
            spread[np.cumsum(made) - made] = gaps
            gaps = spread
        out[request].extend(gaps.tolist())
    return out
