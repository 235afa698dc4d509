"""``windtunnel explain``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from simulator.cli.console import out, print_json
from simulator.cli.options import AsJson, Dtype, KvCacheDtype, Quantization, Settings
from simulator.core.errors import UserError
from simulator.core.units import format_seconds

if TYPE_CHECKING:
    from simulator.cost.step import OperatorCost


def explain(
    scenario: Annotated[
        Path | None,
        typer.Argument(metavar="SCENARIO", help="Scenario file; or give --model and --gpu.", show_default=False),
    ] = None,
    settings: Settings = None,
    model: Annotated[str | None, typer.Option(help="Catalogue name or path of a config.json.")] = None,
    gpu: Annotated[str | None, typer.Option(help="Catalogue name.")] = None,
    tensor_parallel_size: Annotated[int, typer.Option("--tp", min=1, help="Tensor-parallel size.")] = 1,
    dtype: Dtype = "auto",
    quantization: Quantization = None,
    kv_cache_dtype: KvCacheDtype = "auto",
    decodes: Annotated[int, typer.Option(min=0, help="Requests that make one token each.")] = 32,
    context: Annotated[int, typer.Option(min=1, help="Tokens each of them attends to.")] = 1024,
    chunk: Annotated[
        list[str] | None, typer.Option(metavar="N@C", help="Prefill N tokens after C computed ones. Repeatable.")
    ] = None,
    calibration: Annotated[str, typer.Option(help="With --gpu: auto, roofline or a file.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Show where the microseconds of one engine step go."""
    from simulator.cost.breakdown import HEADERS, breakdown, rendered

    if scenario is not None:
        cost = _of_scenario(scenario, settings or [])
    else:
        cost = _of_names(model, gpu, tensor_parallel_size, dtype, quantization, kv_cache_dtype, calibration)
    chunks = [_chunk(text) for text in chunk or ()]
    if not decodes and not chunks:
        raise UserError("the step is empty.", where="--decodes 0", remedy="Give --decodes or --chunk.")
    window = cost.sliding_window
    rows = breakdown(cost, decodes, decodes * context, chunks, windowed=decodes * min(context, window) if window else 0)
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    batch = [f"{decodes} decodes at {context:,} tokens"] if decodes else []
    batch += [f"prefill of {new:,} after {computed:,}" for new, computed in chunks]
    total = format_seconds(sum(row.seconds for row in rows))
    title = f"{cost.model.name} on {cost.gpu.name}: {', '.join(batch)}: {total}"
    out().print(title, style="italic", markup=False, highlight=False, soft_wrap=True)  # a table would break it
    table = Table()
    for index, header in enumerate(HEADERS):
        table.add_column(header, justify="right" if 0 < index < len(HEADERS) - 1 else "left")
    *lines, last = rendered(rows)
    for line in lines:
        table.add_row(*line)
    table.add_section()
    table.add_row(*last, style="bold")
    out().print(table)


def _of_scenario(path: Path, settings: list[str]) -> OperatorCost:
    from simulator.scenario.load import anchored, located
    from simulator.scenario.setup import build
    from simulator.scenario.source import override, read_source

    source = override(read_source(path), settings)
    with located(source):
        setup = build(anchored(source))
    if setup.nodes is not None:
        remedy = "Give --model and --gpu for a GPU that holds all layers."
        raise UserError("nodes have no step in common.", where=f"{path}: engine.placement", remedy=remedy)
    return setup.cost


def _of_names(  # noqa: PLR0917 - the options of the command
    model: str | None, gpu: str | None, tp: int, dtype: str, quantization: str | None, kv_cache_dtype: str,
    calibration: str,
) -> OperatorCost:  # fmt: skip
    from simulator.cost.calibrated import cost_model
    from simulator.cost.calibration import choose
    from simulator.cost.placement import Deployment
    from simulator.hardware.gpu import gpu as find_gpu
    from simulator.model.catalogue import model as find_model

    if model is None or gpu is None:
        raise UserError("nothing to explain.", remedy="Give a scenario, or both --model and --gpu.")
    card = find_gpu(gpu)
    deployment = Deployment(tp, 1, False, dtype, quantization, kv_cache_dtype)  # noqa: FBT003 - expert parallelism
    return cost_model(find_model(model), card, choose(calibration, card), deployment)


def _chunk(text: str) -> tuple[int, int]:
    new, _, computed = text.partition("@")
    if not new.isdecimal() or not (computed or "0").isdecimal() or int(new) < 1:
        raise UserError(f"{text!r} is not a chunk.", where="--chunk", remedy="Write N@C, for example 2048@0.")
    return int(new), int(computed or 0)
