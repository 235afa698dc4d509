"""What a simulation leaves behind: columns, one row per request and one per span of engine steps.

Times are seconds on the simulation clock. Token times are never stored one by one: a replica numbers
the steps in which its decodes advanced (its *token steps*) and every request names the ranges of token
steps it took part in, so inter-token latencies are exact and cost two integers per request. Only where
every request advances on its own, on nodes that hold some layers each, are the times of its tokens kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class Status(IntEnum):
    """How a request ended (invariant 1: exactly one of these)."""

    IN_FLIGHT = 0  # still waiting or running at the horizon
    FINISHED = 1
    REJECTED = 2  # can never be served: prompt + output exceed max_model_len or the KV cache
    FAILED = 3
    CACHED = 4  # answered before it reached a replica, by the cluster's response cache


@dataclass(frozen=True, slots=True)
class RequestRecords:
    """One row per request of the trace, in trace order. NaN / -1 where it never happened."""

    arrival: Floats  # s; inf: it waited for another request, and that had not ended by the horizon
    scheduled: Floats  # s, first time the request joined a batch
    first_token: Floats  # s
    finish: Floats  # s, last token
    prompt_tokens: Ints
    output_tokens: Ints  # asked for; a FINISHED request generated them all
    cached_tokens: Ints  # prompt tokens served from the prefix cache at first admission
    preemptions: Ints
    status: Ints  # Status
    replica: Ints  # index into StepRecords.replica; -1: never routed
    first_token_step: Ints  # token steps [first_token_step, last_token_step) made its 2nd..last token
    last_token_step: Ints
    # Extra ranges of requests that were preempted or moved: rows (request, first_token_step, last_token_step, time of
    # the token before the range, replica). The range in the columns above is the last one.
    extra_ranges: NDArray[np.float64]  # (k, 5)
    # Time of the token right before the range in the columns above (the first token unless preempted), s.
    range_start: Floats


@dataclass(frozen=True, slots=True)
class StepRecords:
    """One row per span: ``num_steps`` identical steps back to back on one replica.

    Step ``j`` (from 0) of a row ends at ``start + (j + 1) * step + increment * j * (j + 1) / 2`` and lasts
    ``step + increment * j``. Row ``r`` holds token steps ``first_token_step .. + num_steps - 1`` of its replica
    when ``num_decodes > 0``; a row without decodes (prefill only) holds none.
    """

    replica: Ints
    start: Floats  # s
    step: Floats  # s, duration of the first step
    increment: Floats  # s, growth of the duration per step
    num_steps: Ints
    num_decodes: Ints  # requests that made one token per step
    first_token_step: Ints
    prefill_tokens: Ints  # prompt (or recomputed) tokens of the (single) step; 0 in a decode span
    num_prefills: Ints
    context_tokens: Floats  # sum over decodes of the KV length read in the first step
    num_waiting: Ints
    num_running: Ints
    free_blocks: Ints  # after the span's blocks are taken, cached blocks included
    preempted: Ints  # requests preempted when the span was planned


@dataclass(frozen=True, slots=True)
class ReplicaRecord:
    """One replica's life. Its GPUs are paid for from ``started`` to ``stopped``."""

    group: str
    gpu: str
    num_gpus: int
    started: float  # s, its GPUs were taken
    ready: float  # s, it took requests; inf: never
    stopped: float  # s, its GPUs were given back; inf: it ran to the end
    why_stopped: str = ""  # scaled in, failed, reclaimed, ...


@dataclass(frozen=True, slots=True)
class TransferRecords:
    """One row per transfer between replicas or tiers, by start."""

    kind: tuple[str, ...]  # kv, migration, weights, ...
    request: Ints  # row of the trace; -1: none
    source: Ints  # replica; -1: none
    target: Ints  # replica; -1: none
    num_bytes: Floats
    start: Floats  # s
    end: Floats  # s; inf: under way at the horizon


@dataclass(frozen=True, slots=True)
class TierRecord:
    """What one KV tier did."""

    name: str
    replica: int  # -1: shared by all
    capacity_bytes: float
    hit_tokens: float  # prompt tokens loaded from it
    bytes_read: float
    bytes_written: float
    busy_s: float  # reading
    bytes_prefetched: float = 0.0  # of those read, for a faster tier


@dataclass(frozen=True, slots=True)
class ClusterEvent:
    """Something that happened to the cluster and not to a request: scaling, a fault, a change of role."""

    time: float  # s
    kind: str  # scale-out, ready, drain, scale-in, failure, recovery, reclaim, role, ...
    replica: int  # -1: none
    text: str = ""


@dataclass(frozen=True, slots=True)
class StepTokens:
    """Tokens that speculating requests made in each of their token steps.

    steps: how many steps of each request are told, (requests,): all on replicas that speculate, where others make one
    token each. speculates: whether a replica does, (replicas,).
    """

    steps: Ints
    speculates: NDArray[np.bool_]
    tokens: NDArray[np.uint8]  # (sum of steps,), one request after the other, each in order of time


@dataclass(frozen=True, slots=True)
class ClockChange:
    """From ``time`` on the steps of a replica run at this share of the maximum core clock, or at less if so built."""

    time: float  # s
    replica: int
    clock: float


@dataclass(frozen=True, slots=True)
class SimulationRecords:
    requests: RequestRecords
    steps: StepRecords
    end: float  # s, when the last thing happened
    num_gpu_blocks: tuple[int, ...]  # per replica
    block_size: int
    num_events: int  # simpy events
    tokens_recomputed: int  # prompt and output tokens computed again after preemption
    step_tokens: StepTokens | None = None  # None: every token step makes one token of each request
    replicas: tuple[ReplicaRecord, ...] = ()
    transfers: TransferRecords | None = None  # None: nothing moves in this cluster
    link_bytes: Mapping[str, float] = field(default_factory=dict)  # bytes carried by each link
    tiers: tuple[TierRecord, ...] = ()
    tier_load_s: float = 0.0  # what loading from tiers added to steps, over all replicas
    tier_aside_s: float = 0.0  # how long requests waited aside for it, all together
    events: tuple[ClusterEvent, ...] = ()
    clocks: tuple[ClockChange, ...] | None = None  # by time; None: nobody changes clocks while the simulation runs
    attempts: Mapping[int, int] = field(default_factory=dict)  # rows that faults lost -> how often
    rejections: Mapping[str, int] = field(default_factory=dict)  # reason -> requests turned away by the cluster's rules
    # Replica -> end of each of its token steps, s, where requests advance on their own and rows tell of no token steps.
    token_ends: Mapping[int, Floats] = field(default_factory=dict)
    prefill_replica: Ints | None = None  # (requests,) where the prompt was computed; None: on ``replica``
