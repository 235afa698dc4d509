"""``windtunnel cache``: hit ratio against capacity, without running an engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simulator.cli.console import out, print_json, print_rows
from simulator.cli.options import AsJson, FormatOptions, KvCacheDtype
from simulator.core.errors import UserError

if TYPE_CHECKING:
    from simulator.report.cache import TraceCurves
    from traces.trace import Trace


def cache(
    traces: Annotated[
        list[str], typer.Argument(metavar="TRACE...", help="Trace files with prefix blocks, or preset:NAME.")
    ],
    capacity_blocks: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,...", help="Capacities in the trace's blocks; by default nine where LRU's curve rises."
        ),
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(help="Eviction policy (`windtunnel policies`) beside the optimum; all by default. Repeatable."),
    ] = None,
    waiting: Annotated[
        int | None,
        typer.Option(min=0, help="Requests that wait while one is served, for policy look-ahead; by default 64."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Say capacities in GB too: of this model's KV cache.")
    ] = None,
    kv_cache_dtype: KvCacheDtype = "auto",
    format: Annotated[str | None, typer.Option("--format", help="Format; found out from the file.")] = None,  # noqa: A002 - the option's name
    option: FormatOptions = None,
    head: Annotated[int | None, typer.Option(min=1, help="Only the first requests.")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Policies at the same time.", show_default="processors")
    ] = None,
    folder: Annotated[Path, typer.Option("--out", help="Folder for the table and the picture.")] = Path("runs/cache"),
    as_json: AsJson = False,
) -> None:
    """Hit ratio of a prefix cache against its capacity, for each eviction policy and for the offline optimum."""
    from simulator.cli.progress import PlanProgress
    from simulator.kv.curves import WAITING
    from simulator.kv.eviction import evictions
    from simulator.planning.pool import processors
    from simulator.report.cache import curves, write_curves

    sizes = _sizes(capacity_blocks)
    names = evictions(policy or [])
    if waiting is not None and "look-ahead" not in names:
        raise UserError("needs policy look-ahead.", where="--waiting", remedy="Add --policy look-ahead.")
    if model is None and kv_cache_dtype != "auto":
        raise UserError("needs a model.", where="--kv-cache-dtype", remedy="Add --model, such as llama-3.1-8b.")
    per_token = None if model is None else _bytes_per_token(model, kv_cache_dtype)
    with PlanProgress() as progress:
        found = [
            curves(
                _read(trace, format, head, option), trace, names, sizes,
                waiting=WAITING if waiting is None else waiting, model=model, bytes_per_token=per_token,
                jobs=jobs or processors(), tick=progress.tick,
            )
            for trace in traces
        ]  # fmt: skip
    files = write_curves(found, folder)
    if as_json:
        print_json([curve.to_dict() for curve in found])
        return
    for trace in found:
        _print(trace)
    out().print(f"Written: {', '.join(str(path) for path in files)}", markup=False, soft_wrap=True)


def _print(found: TraceCurves) -> None:
    from simulator.report.cache import OPTIMUM, gigabytes, short

    kb = f"blocks of {found.block_tokens} tokens"
    title = f"{found.name}: {found.accesses:,} {kb}, {found.num_blocks:,} different; ideal hit ratio {found.ideal:.3f}"
    heads = [short(blocks) for blocks in found.capacity]
    if len(set(heads)) < len(heads):
        heads = [f"{blocks:,}" for blocks in found.capacity]
    if found.bytes_per_token is not None:
        sizes = [found.capacity_bytes(blocks) or 0.0 for blocks in found.capacity]
        heads = [f"{head}\n{gigabytes(size)}" for head, size in zip(heads, sizes, strict=True)]
    rows = [
        {
            "prefix hit ratio": curve.policy if curve.policy != OPTIMUM else f"{OPTIMUM} (the optimum, offline)",
            **{head: f"{ratio:.3f}" for head, ratio in zip(heads, curve.prefix, strict=True)},
            "mean below the optimum": f"{found.below_optimum(curve):.3f}",
        }
        for curve in found.curves
    ]
    print_rows(rows, title=title)


def _bytes_per_token(name: str, dtype: str) -> float:
    from simulator.cost.memory import kv_bytes_per_token
    from simulator.model.catalogue import model

    found = model(name)
    return kv_bytes_per_token(found, kv_cache_dtype=found.dtype if dtype == "auto" else dtype)


def _sizes(text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        sizes = sorted({int(part.replace("_", "")) for part in text.split(",")})
    except ValueError:
        sizes = [0]
    if sizes[0] < 1:
        remedy = "Give whole numbers of blocks, at least 1, such as 1000,10000."
        raise UserError(f"{text!r} is no list of capacities.", where="--capacity-blocks", remedy=remedy)
    return sizes


def _read(name: str, form: str | None, head: int | None, option: list[str] | None) -> Trace:
    from simulator.cli.trace import read

    found = read(name, form, option=option)
    return found if head is None else found.head(head)
