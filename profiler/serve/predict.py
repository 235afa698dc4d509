"""The simulator's prediction of a served run: kernels priced from the device's measurements, the engine's own time as
probed. ``calibrated.py`` prices kernels with the simulator's own cost model, ``TableCost`` here by interpolation.
"""

from __future__ import annotations

import abc
import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from profiler.measure.models import DecoderShape, from_config
from profiler.serve.record import Load, Run, Step
from profiler.serve.tables import Tables
from simulator.cluster.simulation import simulate
from simulator.cost.interface import Line
from simulator.replica.records import SimulationRecords
from simulator.scheduling import EngineArgs
from traces.trace import Trace

LINEAR_STEPS = 8  # a decode span is priced as a straight line over so many steps


@dataclass(frozen=True, slots=True)
class Overhead:
    """Seconds of a step beside its kernels, none negative: a constant, and per sequence. No term that grows with tokens
    or contexts, so that it cannot stand in for kernels priced wrongly.

    launch_s: what the CPU needs to launch an eager step; kernels hide behind it, or it behind them.
    """

    step_s: float = 0.0
    sequence_s: float = 0.0
    launch_s: float = 0.0

    def seconds(self, kernels: float, sequences: int) -> float:
        """Of a whole step whose kernels take ``kernels`` seconds."""
        return max(kernels, self.launch_s) + self.step_s + self.sequence_s * sequences


class ServedCost(abc.ABC):
    """``StepCost`` of one engine on the measured device."""

    sliding_window: int | None = None

    def __init__(self, overhead: Overhead | None = None) -> None:
        self.overhead = overhead or Overhead()

    @abc.abstractmethod
    def kernels(self, num_decodes: int, context: float, chunks: Sequence[tuple[int, int]], num_sampled: int) -> float:
        """Seconds of all kernels of a step."""

    def with_overhead(self, overhead: Overhead) -> Self:
        """The same kernels in an engine that takes its time."""
        other = copy.copy(self)
        other.overhead = overhead
        return other

    def seconds(self, num_decodes: int, context: float, chunks: Sequence[tuple[int, int]], num_sampled: int) -> float:
        """A whole step."""
        kernels = self.kernels(num_decodes, context, chunks, num_sampled)
        return self.overhead.seconds(kernels, num_decodes + len(chunks))

    def decode(self, num_decodes: int, context: int, windowed: int, growing: int) -> Line:
        del windowed, growing
        first = self.seconds(num_decodes, context, (), num_decodes)
        last = self.seconds(num_decodes, context + num_decodes * (LINEAR_STEPS - 1), (), num_decodes)
        return Line(first, (last - first) / (LINEAR_STEPS - 1), LINEAR_STEPS)

    def mixed(
        self, num_decodes: int, context: int, windowed: int, chunks: Sequence[tuple[int, int]], num_sampled: int
    ) -> float:
        del windowed
        return self.seconds(num_decodes, context, chunks, num_sampled)


class TableCost(ServedCost):
    """Kernels interpolated between measured points: no law and no fit between the measurements and the simulator."""

    def __init__(
        self, tables: Tables, shape: DecoderShape, engine: Mapping[str, Any], overhead: Overhead | None = None
    ) -> None:
        """``engine``: what the served run says about its engine (name and attention)."""
        super().__init__(overhead)
        self.tables, self.shape, self.engine = tables, shape, str(engine["name"])
        paged = engine.get("attention") == "varlen_paged"
        self._backends = ("sdpa_flash", "varlen_paged") if paged else ("sdpa", "loop")
        self.heads = (shape.heads, shape.kv_heads, shape.head_dim)
        self._tokens: dict[int, float] = {}
        self._sampled: dict[int, float] = {}

    def kernels(self, num_decodes: int, context: float, chunks: Sequence[tuple[int, int]], num_sampled: int) -> float:
        """Seconds of all kernels of a step."""
        tokens = num_decodes + sum(new for new, _ in chunks)
        seconds = self._by_tokens(tokens) + self._by_sampled(num_sampled)
        return seconds + self.shape.layers * self._attention(num_decodes, context, chunks)

    def _by_tokens(self, tokens: int) -> float:
        if tokens not in self._tokens:
            s, t = self.shape, self.tables
            unfused = "_unfused" if self.engine == "transformers" else ""
            layer = 2 * t.elementwise(f"add_rms_norm{unfused}", s.hidden, tokens)
            layer += t.elementwise(f"rope_and_cache{unfused}", s.qkv, tokens)
            linears = s.unfused_linears if unfused else s.linears
            for name, (n, k) in linears.items():
                if name not in ("lm_head", "router"):
                    layer += t.gemm(tokens, n, k)
            if s.experts:
                layer += t.moe(tokens, s.hidden, s.inter, s.experts, s.top_k)
            else:
                layer += t.elementwise("silu_mul", s.inter, tokens)
            self._tokens[tokens] = s.layers * layer + t.elementwise("embedding", s.hidden, tokens)
        return self._tokens[tokens]

    def _by_sampled(self, rows: int) -> float:
        if not rows:
            return 0.0
        if rows not in self._sampled:
            s, t = self.shape, self.tables
            seconds = t.gemm(rows, s.vocab, s.hidden) + t.elementwise("sample_greedy", s.vocab, rows)
            self._sampled[rows] = seconds + t.elementwise("rms_norm", s.hidden, rows)
        return self._sampled[rows]

    def _attention(self, num_decodes: int, context: float, chunks: Sequence[tuple[int, int]]) -> float:
        """Of one layer. Packed: every query meets every key of the step."""
        if self.engine == "transformers":
            queries = num_decodes + sum(new for new, _ in chunks)
            return self.tables.packed(self.heads, queries, context + sum(new + old for new, old in chunks))
        seconds = sum(self.tables.prefill(self.heads, new, old, self._backends[0]) for new, old in chunks)
        if num_decodes:
            seconds += self.tables.decode(self.heads, num_decodes, context, self._backends[1])
        return seconds


def sampled(step: Step) -> int:
    """Rows that needed logits: decodes, and (taken as all) chunks; a chunk that does not end its prompt is rare."""
    return step.num_decodes + len(step.chunks)


def step_seconds(cost: ServedCost, step: Step) -> float:
    return cost.seconds(step.num_decodes, step.context_sum, step.chunks, sampled(step))


def probe_overhead(cost: ServedCost, probe: Sequence[Step], *, launches: bool) -> Overhead:
    """What the probe's steps took beyond their kernels: non-negative least squares, each step weighted alike in
    relative terms. The first step of every probe batch is left out: it pays for the cold start.

    launches: the device runs behind its host (a GPU), so a floor under the kernels is sought too: the one among the
    probe's own step times that leaves the least.
    """
    steps = [s for before, s in zip([None, *probe], probe, strict=False) if before and s.start_s >= before.end_s - 1e-9]
    if not steps:
        return Overhead()
    took = np.array([s.seconds for s in steps])
    kernels = np.array([cost.kernels(s.num_decodes, s.context_sum, s.chunks, sampled(s)) for s in steps])
    scale = np.array([1e-3, 1e-4])
    matrix = np.array([(1.0, s.num_decodes + len(s.chunks)) for s in steps]) * scale / took[:, None]
    floors = [0.0, *np.percentile(took, np.arange(0, 70, 2)).tolist()] if launches else [0.0]
    best, least = Overhead(), np.inf
    for floor in floors:
        left = (took - np.maximum(kernels, floor)) / took
        found, residual = nnls(matrix, left)
        if residual < least:
            step, sequence = (found * scale).tolist()
            best, least = Overhead(step, sequence, floor), residual
    return best


def predict(run: Run, load: Load, cost: ServedCost) -> SimulationRecords:
    """The simulator serves the same requests with vLLM's token-budget rules, synchronously, no prefix caching."""
    settings = run.engine["settings"]
    trace = Trace(
        arrival=_column(r.arrival_s for r in load.requests),
        prompt_tokens=_column(r.prompt_tokens for r in load.requests).astype(np.int64),
        output_tokens=_column(r.output_tokens for r in load.requests).astype(np.int64),
        source=f"{run.engine['name']}, {load.load}",
    )
    args = EngineArgs(
        max_num_seqs=settings["max_num_seqs"],
        max_num_batched_tokens=settings["max_num_batched_tokens"],
        block_size=settings["block_size"],
        enable_prefix_caching=False,
        async_scheduling=False,
        scheduler_reserve_full_isl=False,
    )
    return simulate(trace, args, cost, settings["num_blocks"] + 1)


def _column(values: object) -> NDArray[np.float64]:
    return np.array(list(values), dtype=np.float64)  # type: ignore[call-overload]


def shape_of(run: Run) -> DecoderShape:
    return from_config(run.model, str(run.model["name"]), "model")
