"""The simulator's prediction of a served run: kernels as measured on the device, the engine's own time as probed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    """Seconds of a step beside its kernels, none negative: a constant, and per sequence, new token and KV token."""

    step_s: float = 0.0
    sequence_s: float = 0.0
    token_s: float = 0.0
    context_s: float = 0.0

    def seconds(self, sequences: int, tokens: int, context: float) -> float:
        return self.step_s + self.sequence_s * sequences + self.token_s * tokens + self.context_s * context


class ServedCost:
    """``StepCost`` of one engine on the measured device, from tables alone."""

    sliding_window: int | None = None

    def __init__(self, tables: Tables, shape: DecoderShape, engine: str, overhead: Overhead | None = None) -> None:
        self.tables, self.shape, self.engine = tables, shape, engine
        self.overhead = overhead or Overhead()
        self.heads = (shape.heads, shape.kv_heads, shape.head_dim)
        found = tables.backends("decode_attention")
        self._decode_backend = next((b for b in ("varlen_paged", "loop", "gather") if b in found), None)
        self._tokens: dict[int, float] = {}
        self._sampled: dict[int, float] = {}

    # -- kernels ----------------------------------------------------------------------------------------------------

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
        seconds = sum(self.tables.prefill(self.heads, new, old) for new, old in chunks)
        if num_decodes:
            seconds += self.tables.decode(self.heads, num_decodes, context, self._decode_backend)
        return seconds

    # -- StepCost ---------------------------------------------------------------------------------------------------

    def seconds(self, num_decodes: int, context: float, chunks: Sequence[tuple[int, int]], num_sampled: int) -> float:
        """A whole step."""
        tokens = num_decodes + sum(new for new, _ in chunks)
        keys = context + sum(new + old for new, old in chunks)
        kernels = self.kernels(num_decodes, context, chunks, num_sampled)
        return kernels + self.overhead.seconds(num_decodes + len(chunks), tokens, keys)

    def decode(self, num_decodes: int, context: int, windowed: int, growing: int) -> Line:
        first = self.seconds(num_decodes, context, (), num_decodes)
        last = self.seconds(num_decodes, context + num_decodes * (LINEAR_STEPS - 1), (), num_decodes)
        return Line(first, (last - first) / (LINEAR_STEPS - 1), LINEAR_STEPS)

    def mixed(
        self, num_decodes: int, context: int, windowed: int, chunks: Sequence[tuple[int, int]], num_sampled: int
    ) -> float:
        return self.seconds(num_decodes, context, chunks, num_sampled)


def sampled(step: Step) -> int:
    """Rows that needed logits: decodes, and (taken as all) chunks; a chunk that does not end its prompt is rare."""
    return step.num_decodes + len(step.chunks)


def step_seconds(cost: ServedCost, step: Step) -> float:
    return cost.seconds(step.num_decodes, step.context_sum, step.chunks, sampled(step))


def probe_overhead(cost: ServedCost, probe: Sequence[Step]) -> Overhead:
    """Non-negative least squares of what the probe's steps took beyond their kernels, each step weighted alike in
    relative terms. The first step of every probe batch is left out: it pays for the cold start.
    """
    steps = [s for before, s in zip([None, *probe], probe, strict=False) if before and s.start_s >= before.end_s - 1e-9]
    if not steps:
        return Overhead()
    matrix, left = [], []
    for s in steps:
        kernels = cost.kernels(s.num_decodes, s.context_sum, s.chunks, sampled(s))
        tokens = s.num_decodes + sum(new for new, _ in s.chunks)
        keys = s.context_sum + sum(new + old for new, old in s.chunks)
        matrix.append(np.array([1.0, s.num_decodes + len(s.chunks), tokens, keys]) / s.seconds)
        left.append(max(0.0, s.seconds - kernels) / s.seconds)
    scale = np.array([1e-3, 1e-4, 1e-5, 1e-6])
    found, _ = nnls(np.array(matrix) * scale, np.array(left))
    return Overhead(*(found * scale).tolist())


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
