"""Arrivals, lengths and conversations put together into a ``Trace``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from simulator.core.errors import TraceError
from simulator.core.random import streams
from traces.generate.arrivals import Arrivals, RateCurve
from traces.generate.documents import Documents, prefix_of_chunks, sample_documents
from traces.generate.lengths import Lengths
from traces.generate.sessions import Sessions, Turns, prefix_blocks, sample_turns
from traces.trace import Ints, Labels, Trace


@dataclass(frozen=True, slots=True)
class Generators:
    """Separate streams, so that another length distribution leaves the arrivals alone."""

    arrivals: np.random.Generator
    lengths: np.random.Generator
    sessions: np.random.Generator

    @classmethod
    def of(cls, seed: int) -> Generators:
        """The named streams ``arrivals``, ``lengths`` and ``sessions`` of a scenario seed."""
        named = streams(seed)
        return cls(named.stream("arrivals"), named.stream("lengths"), named.stream("sessions"))

    def state(self) -> tuple[Any, ...]:
        return tuple(rng.bit_generator.state for rng in (self.arrivals, self.lengths, self.sessions))

    def restore(self, state: tuple[Any, ...]) -> None:
        """Go back to where ``state`` was taken."""
        for rng, saved in zip((self.arrivals, self.lengths, self.sessions), state, strict=True):
            rng.bit_generator.state = saved


def synthesize(
    *,
    arrivals: Arrivals,
    lengths: Lengths,
    sessions: Sessions | None = None,
    documents: Documents | None = None,
    num_requests: int,
    generators: Generators,
    source: str = "synthetic",
) -> Trace:
    """``num_requests`` requests.

    Without sessions each arrival is one request. With sessions each arrival starts a conversation, and the trace is the
    first ``num_requests`` turns in order of arrival (so the arrival process's rate is conversations per second).
    documents: what a retriever puts in front of each prompt; requests without sessions only.
    """
    if num_requests < 1:
        raise TraceError(f"num_requests must be >= 1, not {num_requests}")
    if sessions is None:
        times = arrivals.times(num_requests, generators.arrivals)
        prompt, output = lengths.sample(num_requests, generators.lengths)
        plain = Trace(times, prompt, output, source=source, notes=lengths.notes())
        if documents is None:
            return plain
        chunks = sample_documents(num_requests, documents, generators.sessions)
        prefix = prefix_of_chunks(chunks, documents.block_tokens)
        return replace(plain, prompt_tokens=prompt + chunks.totals(), prefix=prefix, chunks=chunks)
    if documents is not None:
        raise TraceError("documents are retrieved for single requests: leave sessions out")
    turns = _first_turns(arrivals, lengths, sessions, num_requests, generators)
    prefix = prefix_blocks(turns, sessions, generators.sessions)
    order = np.argsort(turns.arrival, kind="stable")
    closed = sessions.closed_loop and bool((turns.turn > 0).any())
    return Trace(
        arrival=turns.arrival[order],
        prompt_tokens=turns.prompt_tokens[order],
        output_tokens=turns.output_tokens[order],
        session=turns.session[order],
        turn=turns.turn[order],
        think_time=turns.think_time[order] if closed else None,
        prefix=prefix.take(order),
        source=source,
        notes=lengths.notes(),
    )


def _first_turns(
    arrivals: Arrivals, lengths: Lengths, sessions: Sessions, num_requests: int, generators: Generators
) -> Turns:
    """The first turns in order of arrival. Draws only as many conversations as begin before the last of them."""
    starts = arrivals.times(num_requests, generators.arrivals)
    enough = 64 + num_requests // 2
    while True:
        turns = sample_turns(starts[:enough], lengths, sessions, generators.lengths, generators.sessions)
        if len(turns.arrival) >= num_requests:
            last = np.argsort(turns.arrival, kind="stable")[:num_requests]
            if enough >= len(starts) or starts[enough] >= turns.arrival[last[-1]]:
                return turns.select(np.sort(last))
        enough *= 2


@dataclass(frozen=True, slots=True)
class Client:
    """One of many: its share of the requests, its own arrival process and lengths (ServeGen, arXiv:2505.09999)."""

    name: str
    share: float
    arrivals: Arrivals
    lengths: Lengths

    def __post_init__(self) -> None:
        if not self.share > 0:
            raise TraceError(f"client {self.name}: share must be > 0, not {self.share}")


def synthesize_clients(
    clients: Sequence[Client], *, rate: float, num_requests: int, generators: Generators, source: str = "synthetic"
) -> Trace:
    """The first ``num_requests`` of all clients' requests; each client is a tenant.

    rate: requests/s of all clients together on average; each has its share of it.
    """
    if num_requests < 1 or not rate > 0:
        raise TraceError(f"need num_requests >= 1 and rate > 0, not {num_requests} and {rate}")
    window = num_requests / rate
    weights = np.array([client.share * _activity(client.arrivals, window) for client in clients])
    expected = num_requests * weights / weights.sum()
    seeds = zip(generators.arrivals.spawn(len(clients)), generators.lengths.spawn(len(clients)), strict=True)
    drawn = [_ClientRows(c, n, window, *rngs) for c, n, rngs in zip(clients, expected, seeds, strict=True) if n > 0]
    while True:
        cut = np.sort(np.concatenate([rows.times for rows in drawn]))[num_requests - 1]
        short = [rows for rows in drawn if rows.times[-1] < cut]
        if not short:
            break
        for rows in short:
            rows.draw(2 * len(rows.times))
    arrival = np.concatenate([rows.times for rows in drawn])
    lengths = [rows.lengths() for rows in drawn]
    codes = np.repeat([clients.index(rows.client) for rows in drawn], [len(rows.times) for rows in drawn])
    order = np.argsort(arrival, kind="stable")[:num_requests]
    return Trace(
        arrival=arrival[order],
        prompt_tokens=np.concatenate([prompt for prompt, _ in lengths])[order],
        output_tokens=np.concatenate([output for _, output in lengths])[order],
        tenant=Labels(codes[order].astype(np.int32), tuple(client.name for client in clients)),
        source=source,
    )


class _ClientRows:
    """One client's arrivals, long enough to reach beyond the last request that is kept."""

    def __init__(
        self, client: Client, expected: float, window: float, rng: np.random.Generator, rng_lengths: np.random.Generator
    ) -> None:
        self.client = client
        self._process = client.arrivals.at_rate(expected / window, max(round(expected), 1))
        self._rng = rng
        self._state = rng.bit_generator.state
        self._rng_lengths = rng_lengths
        self.draw(int(1.1 * expected + 4 * expected**0.5 + 16))

    def draw(self, n: int) -> None:
        """The first ``n`` arrivals, always from the same point of the stream."""
        self._rng.bit_generator.state = self._state
        self.times = self._process.times(n, self._rng)

    def lengths(self) -> tuple[Ints, Ints]:
        return self.client.lengths.sample(len(self.times), self._rng_lengths)


def _activity(arrivals: Arrivals, window: float) -> float:
    """Mean rate over the window relative to the curve's own mean; 1 for a process without a curve."""
    if not isinstance(arrivals, RateCurve):
        return 1.0
    period = arrivals.times_s[-1]
    return (arrivals.expected(window) / window) / (arrivals.expected(period) / period)
