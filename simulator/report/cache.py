"""Hit-ratio curves of traces: table and picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simulator.core.errors import TraceError, UserError
from simulator.kv.curves import Curve, accesses, capacities, hit_curve
from simulator.report.files import atomic_write
from traces.trace import Trace


@dataclass(frozen=True)
class TraceCurves:
    """One trace: hit ratios of every policy at every capacity (blocks of ``block_tokens`` tokens)."""

    name: str
    block_tokens: int
    accesses: int  # blocks used
    num_blocks: int  # different ones
    ideal: float  # hit ratio of a cache without end
    capacity: list[int]
    curves: list[Curve]

    def to_dict(self) -> dict[str, Any]:
        ratios = {
            curve.policy: {"prefix": curve.prefix.tolist(), "blocks": curve.blocks.tolist()} for curve in self.curves
        }
        return {
            "trace": self.name,
            "block_tokens": self.block_tokens,
            "accesses": self.accesses,
            "different_blocks": self.num_blocks,
            "ideal_hit_ratio": self.ideal,
            "capacity_blocks": self.capacity,
            "hit_ratio": ratios,
        }


def curves(
    trace: Trace, name: str, policies: Sequence[str], sizes: Sequence[int] | None, tell: Callable[[str], None]
) -> TraceCurves:
    """Curves of a trace, policies side by side on all cores. Raises TraceError when it has no prefix blocks."""
    if trace.prefix is None or not len(trace.prefix.ids):
        raise TraceError(
            "the trace has no prefix blocks, so nothing can be hit.",
            where=name,
            remedy="Use a trace with block hashes, such as Mooncake's, or a preset with sessions.",
        )
    found = accesses(trace.prefix.offsets, trace.prefix.ids)
    capacity = capacities(found) if sizes is None else np.array(sizes, dtype=np.int64)
    with ProcessPoolExecutor() as pool:
        waiting = [pool.submit(hit_curve, found, policy, capacity) for policy in policies]
        done = []
        for policy, future in zip(policies, waiting, strict=True):
            done.append(future.result())
            tell(f"{name}: {policy}")
    return TraceCurves(
        name, trace.prefix.block_tokens, len(found.block), found.num_blocks, found.ideal, capacity.tolist(), done
    )


def write_curves(found: Sequence[TraceCurves], folder: Path) -> list[Path]:
    """cache.csv and cache.png in ``folder``. Raises UserError when it cannot be written."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["trace", "policy", "capacity_blocks", "capacity_tokens", "prefix_hit_ratio", "block_hit_ratio"])
    for trace in found:
        for curve in trace.curves:
            for size, prefix, blocks in zip(curve.capacity.tolist(), curve.prefix, curve.blocks, strict=True):
                tokens = size * trace.block_tokens
                table.writerow([trace.name, curve.policy, size, tokens, f"{prefix:.6f}", f"{blocks:.6f}"])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [atomic_write(folder / "cache.csv", text.getvalue()), _draw(found, folder / "cache.png")]
    except OSError as error:
        raise UserError(f"cannot be written: {error}.", where=str(folder), remedy="Choose another --out.") from error


def _draw(found: Sequence[TraceCurves], path: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2 * len(found), 4.8), layout="constrained")
    for axes, trace in zip(np.atleast_1d(figure.subplots(1, len(found))), found, strict=True):
        for curve in trace.curves:
            offline = curve.policy == "belady"
            axes.plot(
                curve.capacity, curve.prefix, marker="o", markersize=3.5, label=curve.policy,
                color="black" if offline else None, linestyle="--" if offline else "-",
            )  # fmt: skip
        axes.axhline(trace.ideal, color="grey", linewidth=0.9, linestyle=":")
        axes.annotate(f"no limit: {trace.ideal:.3f}", (trace.capacity[0], trace.ideal), (0, 4), color="grey",
                      textcoords="offset points", fontsize=9)  # fmt: skip
        axes.set(xscale="log", ylim=(0, max(trace.ideal * 1.12, 0.05)))
        axes.set(xlabel=f"capacity (blocks of {trace.block_tokens} tokens)", ylabel="prefix hit ratio")
        axes.set_title(Path(trace.name).name, fontsize=11)
        axes.grid(visible=True, which="major", linewidth=0.4)
        axes.legend(fontsize=9, frameon=False)
    figure.savefig(path, dpi=130)
    return path
