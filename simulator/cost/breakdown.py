"""Why a step takes as long as it does: its operators, one row each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulator.core.units import format_bytes, format_seconds
from simulator.cost.context_parallel import ContextParallelCost
from simulator.cost.kv_reads import decode_curve
from simulator.cost.operators import Bound, ChunkSeconds
from simulator.cost.shapes import AttentionShape, decode_physics, prefill_physics
from simulator.cost.step import EXACT_TOKENS, GRID_TOKENS, Entry, OperatorCost


@dataclass(frozen=True, slots=True)
class Row:
    """``count`` launches of one operator; seconds, FLOPs and bytes (per GPU) of all of them together."""

    operator: str
    count: int
    seconds: float
    flops: float
    bytes: float
    bound: Bound


def breakdown(
    cost: OperatorCost,
    num_decodes: int,
    context: int,
    chunks: Sequence[tuple[int, int]] = (),
    *,
    windowed: int = 0,
    num_sampled: int | None = None,
) -> list[Row]:
    """Rows of the step that ``cost`` prices with these arguments, in the order they run; their seconds sum to its time.

    ``num_sampled`` None: every decode and every chunk. The last rows are the engine's: time the GPU waits in every
    step, and time it waits because the CPU is slower.
    """
    sampled = num_decodes + len(chunks) if num_sampled is None else num_sampled
    if isinstance(cost, ContextParallelCost):
        tokens = cost.rank_tokens(num_decodes, chunks)
        attention = _cut_rows(cost, num_decodes, context, chunks)
    else:
        tokens = num_decodes + sum(new for new, _ in chunks)
        attention = _attention_rows(cost, num_decodes, context, windowed, chunks)
    rows = _merge(_token_entries(cost, cost.overhead.padded(tokens))) + attention
    rows += _merge(cost.sampled_entries(sampled if chunks else num_decodes))
    gpu = sum(row.seconds for row in rows)
    serial = cost.overhead.serial_s(num_decodes + len(chunks))
    total = cost.mixed(num_decodes, context, windowed, chunks, sampled)
    rows.append(Row("engine: gap between steps", 1, serial, 0.0, 0.0, "latency"))
    waiting = total - serial - gpu
    if waiting > 1e-9 * total:
        rows.append(Row("engine: waiting for the CPU", 1, waiting, 0.0, 0.0, "latency"))
    return rows


def _token_entries(cost: OperatorCost, tokens: int) -> list[Entry]:
    """As the step is priced: between grid points seconds are interpolated, FLOPs and bytes are those of ``tokens``."""
    entries = cost.token_entries(tokens)
    if tokens <= EXACT_TOKENS or tokens % GRID_TOKENS == 0:
        return entries
    low = tokens - tokens % GRID_TOKENS
    share = (tokens - low) / GRID_TOKENS
    ends = zip(entries, cost.token_entries(low), cost.token_entries(low + GRID_TOKENS), strict=True)
    return [
        e._replace(price=e.price._replace(seconds=a.price.seconds + (b.price.seconds - a.price.seconds) * share))
        for e, a, b in ends
    ]


def _merge(entries: Sequence[Entry]) -> list[Row]:
    rows: dict[tuple[str, Bound], Row] = {}
    for name, n, price in entries:
        old = rows.get((name, price.bound), Row(name, 0, 0.0, 0.0, 0.0, price.bound))
        rows[name, price.bound] = Row(
            name, old.count + n, old.seconds + n * price.seconds, old.flops + n * price.flops,
            old.bytes + n * price.bytes, price.bound,
        )  # fmt: skip
    return list(rows.values())


def _attention_rows(
    cost: OperatorCost, num_decodes: int, context: int, windowed: int, chunks: Sequence[tuple[int, int]]
) -> list[Row]:
    rows = []
    beside: list[float] = []
    if num_decodes and chunks and cost.uneven:
        chunk_s = sum(n * f(new, old) for n, f in _chunk_prices(cost) for new, old in chunks)
        beside = cost.beside(num_decodes, context, windowed, chunks, chunk_s)
    for i, (shape, count) in enumerate(cost.attention_shapes):
        name = shape.kind if shape.window is None else f"window {shape.window}"
        if num_decodes:
            keys = context if shape.window is None else windowed
            seconds = decode_curve(cost.operators, shape, num_decodes).at(keys)
            if beside:
                seconds = beside[i] / count
            flops, size = decode_physics(shape, num_decodes, keys)
            rows.append(_row(cost, f"attention decode ({name})", count, seconds, flops, size))
        if chunks:
            rows.append(_prefill_row(cost, shape, count, name, chunks))
    return rows


def _cut_rows(
    cost: ContextParallelCost, num_decodes: int, context: int, chunks: Sequence[tuple[int, int]]
) -> list[Row]:  # fmt: skip
    """Attention over cut contexts: the share of one rank, and merging the shares of decodes."""
    rows = []
    ranks, cut = cost.placed.pcp, cost.placed.context_ranks
    for shape, count in cost.attention_shapes:
        if num_decodes:
            gathered = cost.gathered_shapes[shape]
            seconds = cost.operators.decode_attention(gathered, num_decodes).at(context / cut)
            flops, size = decode_physics(gathered, num_decodes, context // cut)
            rows.append(_row(cost, f"attention decode ({shape.kind})", count, seconds, flops, size))
            merging = count * cost.exchange_seconds(shape, num_decodes)
            rows.append(Row("merge partial attention", count, merging, 0.0, 0.0, "network"))
        if chunks:
            price = cost.chunk_price(shape)
            seconds = ranks * cost.operators.prefill_launch(shape) + sum(price(new, old) for new, old in chunks)
            physics = [prefill_physics(shape, new, old) for new, old in chunks]
            flops, size = sum(f for f, _ in physics) / ranks, sum(b for _, b in physics)
            rows.append(_row(cost, f"attention prefill ({shape.kind})", count, seconds, flops, size))
    return rows


def _chunk_prices(cost: OperatorCost) -> list[tuple[int, ChunkSeconds]]:
    return [(count, cost.operators.prefill_attention(shape)) for shape, count in cost.attention_shapes]


def _prefill_row(
    cost: OperatorCost, shape: AttentionShape, count: int, name: str, chunks: Sequence[tuple[int, int]]
) -> Row:  # fmt: skip
    price = cost.operators.prefill_attention(shape)
    physics = [prefill_physics(shape, new, computed) for new, computed in chunks]
    seconds = cost.operators.prefill_launch(shape) + sum(price(new, computed) for new, computed in chunks)
    flops, size = sum(f for f, _ in physics), sum(b for _, b in physics)
    return _row(cost, f"attention prefill ({name})", count, seconds, flops, size)


def _row(cost: OperatorCost, name: str, count: int, seconds: float, flops: float, size: float) -> Row:
    """What bounds an attention kernel: the launch when the physics at full peaks is under a third of its time."""
    compute, memory = flops / cost.gpu.peak("bf16")[1], size / cost.gpu.memory_bandwidth
    bound: Bound = "latency" if max(compute, memory) < seconds / 3 else "compute" if compute > memory else "memory"
    return Row(name, count, count * seconds, count * flops, count * size, bound)


HEADERS = ("operator", "count", "time", "share", "TFLOP", "moved", "bound")


def rendered(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Strings for a table under ``HEADERS``, a total at the end."""
    total = sum(row.seconds for row in rows)
    shown = [_shown(row, total) for row in rows]
    everything = Row("step", 1, total, sum(r.flops for r in rows), sum(r.bytes for r in rows), "memory")
    return [*shown, (*_shown(everything, total)[:-1], "")]


def _shown(row: Row, total: float) -> tuple[str, ...]:
    return (
        row.operator, str(row.count), format_seconds(row.seconds), f"{row.seconds / total:.1%}",
        f"{row.flops / 1e12:.3g}" if row.flops else "-", format_bytes(row.bytes) if row.bytes else "-", row.bound,
    )  # fmt: skip
