"""Hit-ratio curves of traces: table and picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.core.errors import TraceError, UserError
from simulator.kv.accesses import Accesses, Ints, accesses
from simulator.kv.curves import WAITING, Curve, capacities, hit_curve
from simulator.report.files import atomic_path, atomic_write
from traces.prefix import ensure_chained
from traces.trace import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OPTIMUM = "belady"
COLOURS = ("#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8b5a2b", "#7a5ccc", "#999999", "#b8a800", "#a50026")
ENGINES = {"lru": "lru (vLLM)", "radix": "radix (SGLang)"}  # what engines do
Tick = Callable[[str, int, int], None]


@dataclass(frozen=True)
class TraceCurves:
    """One trace: hit ratios of every policy at every capacity (blocks of ``block_tokens`` tokens), the best first.

    bytes_per_token: of the KV cache of ``model``; None: none was named.
    """

    name: str
    block_tokens: int
    accesses: int  # blocks used
    num_blocks: int  # different ones
    ideal: float  # hit ratio of a cache without end
    capacity: list[int]
    curves: list[Curve]
    model: str | None = None
    bytes_per_token: float | None = None

    @property
    def optimum(self) -> Curve:
        return next(curve for curve in self.curves if curve.policy == OPTIMUM)

    def below_optimum(self, curve: Curve) -> float:
        """By how much of all blocks it hits less than the optimum, mean over the capacities."""
        return float(np.mean(self.optimum.prefix - curve.prefix))

    def capacity_bytes(self, blocks: int) -> float | None:
        return None if self.bytes_per_token is None else blocks * self.block_tokens * self.bytes_per_token

    def to_dict(self) -> dict[str, Any]:
        ratios = {
            curve.policy: {
                "prefix": curve.prefix.tolist(),
                "blocks": curve.blocks.tolist(),
                "below_optimum": (self.optimum.prefix - curve.prefix).tolist(),
            }
            for curve in self.curves
        }
        return {
            "trace": self.name,
            "block_tokens": self.block_tokens,
            "accesses": self.accesses,
            "different_blocks": self.num_blocks,
            "ideal_hit_ratio": self.ideal,
            "capacity_blocks": self.capacity,
            "capacity_bytes": [self.capacity_bytes(blocks) for blocks in self.capacity],
            "hit_ratio": ratios,
        }


def curves(
    trace: Trace,
    name: str,
    policies: Sequence[str],
    sizes: Sequence[int] | None,
    *,
    waiting: int = WAITING,
    model: str | None = None,
    bytes_per_token: float | None = None,
    jobs: int = 1,
    tick: Tick | None = None,
) -> TraceCurves:
    """Curves of a trace and of the offline optimum, in ``jobs`` processes.

    waiting: requests that look-ahead eviction sees. tick: told (trace, policies finished, policies). Raises TraceError
    when the trace has no prefix blocks.
    """
    if trace.prefix is None or not len(trace.prefix.ids):
        raise TraceError(
            "the trace has no prefix blocks, so nothing can be hit.",
            where=name,
            remedy="Use a trace with block hashes, such as Mooncake's, or a preset with sessions.",
        )
    prefix = ensure_chained(trace.prefix)
    found = accesses(prefix.offsets, prefix.ids)
    capacity = capacities(found) if sizes is None else np.array(sizes, dtype=np.int64)
    wanted = list(dict.fromkeys([OPTIMUM, *policies]))
    done: dict[str, Curve] = {}
    for curve in _all(found, wanted, capacity, waiting, jobs):
        done[curve.policy] = curve
        if tick is not None:
            tick(name, len(done), len(wanted))
    best_first = sorted(wanted, key=lambda policy: (-done[policy].prefix.sum(), policy != OPTIMUM, policy))
    return TraceCurves(
        name, prefix.block_tokens, found.num_used, found.num_blocks, found.ideal, capacity.tolist(),
        [done[policy] for policy in best_first], model, bytes_per_token,
    )  # fmt: skip


def _all(found: Accesses, policies: Sequence[str], capacity: Ints, waiting: int, jobs: int) -> Iterator[Curve]:
    work = partial(hit_curve, found, capacity=capacity, waiting=waiting)
    if min(jobs, len(policies)) <= 1:
        yield from map(work, policies)
        return
    with ProcessPoolExecutor(jobs) as pool:
        for future in as_completed([pool.submit(work, policy) for policy in policies]):
            yield future.result()


def write_curves(found: Sequence[TraceCurves], folder: Path) -> list[Path]:
    """cache.csv and cache.png in ``folder``. Raises UserError when it cannot be written."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(
        ["trace", "policy", "capacity_blocks", "capacity_tokens", "capacity_gb", "prefix_hit_ratio", "block_hit_ratio",
         "below_optimum"]
    )  # fmt: skip
    for trace in found:
        for curve in trace.curves:
            below = trace.optimum.prefix - curve.prefix
            for size, *ratios in zip(curve.capacity.tolist(), curve.prefix, curve.blocks, below, strict=True):
                num_bytes = trace.capacity_bytes(size)
                gb = "" if num_bytes is None else f"{num_bytes / 1e9:.6g}"
                tokens = size * trace.block_tokens
                table.writerow([trace.name, curve.policy, size, tokens, gb, *(f"{ratio:.6f}" for ratio in ratios)])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [atomic_write(folder / "cache.csv", text.getvalue()), _draw(found, folder / "cache.png")]
    except OSError as error:
        raise UserError(f"cannot be written: {error}.", where=str(folder), remedy="Choose another --out.") from error


def short(number: float) -> str:
    """Three digits with k, M, G: ``1698`` is ``1.7k``."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g}{unit}" if number < 99.95 * size else f"{number / size:.0f}{unit}"
    return f"{number:.3g}"


def gigabytes(num_bytes: float) -> str:
    return f"{num_bytes / 1e12:.3g} TB" if num_bytes >= 999.5e9 else f"{num_bytes / 1e9:.3g} GB"


# -- the picture ------------------------------------------------------------------------------------------------------


def _draw(found: Sequence[TraceCurves], path: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 5.6 * len(found)), layout="constrained")
    for axes, trace in zip(np.atleast_1d(figure.subplots(len(found), 1)), found, strict=True):
        _lines(axes, trace)
        _scales(axes, trace)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150)
    return path


def _lines(axes: Axes, trace: TraceCurves) -> None:
    """Every policy; the optimum black, with all that nobody reaches above it grey."""
    others = sorted({curve.policy for curve in trace.curves} - {OPTIMUM, "lru"})
    colours = dict(zip(others, cycle(COLOURS))) | {"lru": "#0072b2"}  # the same in every picture
    axes.axhline(100 * trace.ideal, color="#555555", linewidth=1, linestyle=":")
    axes.annotate(
        f"seen before: {trace.ideal:.1%} of all blocks, the hit ratio of a cache without end",
        (trace.capacity[0], 100 * trace.ideal), (0, 4), color="#555555", textcoords="offset points", fontsize=9,
    )  # fmt: skip
    axes.fill_between(
        trace.capacity, 100 * trace.optimum.prefix, 100 * trace.ideal, color="#eeeeee", linewidth=0,
        label="out of reach at this capacity",
    )  # fmt: skip
    for curve in trace.curves:
        if curve.policy == OPTIMUM:
            style: dict[str, Any] = {"color": "black", "linewidth": 2, "linestyle": (0, (5, 2)), "zorder": 4}
            label = f"{OPTIMUM}: the optimum, knows the future"
        else:
            width, order = (2.6, 3) if curve.policy == "lru" else (1.4, 2)
            style = {"color": colours[curve.policy], "linewidth": width, "marker": "o", "zorder": order}
            label = f"{ENGINES.get(curve.policy, curve.policy)}: {100 * trace.below_optimum(curve):.1f} below"
        axes.plot(curve.capacity, 100 * curve.prefix, label=label, markersize=3.5, **style)


def _times(factor: float) -> Callable[[Any], Any]:
    return lambda values: np.asarray(values) * factor


def _scales(axes: Axes, trace: TraceCurves) -> None:
    import matplotlib.ticker as ticks

    axes.set(xscale="log", ylim=(0, min(max(112 * trace.ideal, 5), 108)))
    axes.set_ylabel("prefix hit ratio (% of prompt blocks)")
    axes.set_xlabel(f"cache capacity (blocks of {trace.block_tokens} tokens)")
    axes.xaxis.set_major_locator(ticks.LogLocator(subs=(1, 3)))
    axes.xaxis.set_major_formatter(ticks.FuncFormatter(lambda value, _: short(value)))
    axes.xaxis.set_minor_formatter(ticks.NullFormatter())
    block_bytes = trace.capacity_bytes(1)
    if block_bytes is not None:
        above = axes.secondary_xaxis("top", functions=(_times(block_bytes / 1e9), _times(1e9 / block_bytes)))
        above.set_xlabel(f"KV cache of {trace.model} (GB)")
        above.xaxis.set_major_locator(ticks.LogLocator(subs=(1, 3)))
        above.xaxis.set_major_formatter(ticks.FuncFormatter(lambda value, _: short(value)))
        above.xaxis.set_minor_formatter(ticks.NullFormatter())
    name = "/".join(Path(trace.name).parts[-2:])
    blocks = f"{short(trace.accesses)} blocks, {short(trace.num_blocks)} different"
    axes.set_title(f"{name}: {blocks}", fontsize=11, loc="left")
    axes.grid(visible=True, which="major", linewidth=0.4, color="#cccccc")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        title="eviction policy: percentage points\nbelow the optimum, mean over capacities", alignment="left",
        fontsize=9, title_fontsize=9, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0),
    )  # fmt: skip
