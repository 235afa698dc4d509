"""``windtunnel gpus``."""

from __future__ import annotations

from typing import Annotated

import typer

from simulator.cli.console import print_fields, print_json, print_rows
from simulator.cli.options import AsJson

Row = dict[str, str | int | float | None]


def gpus(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="One GPU of the catalogue, in detail.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the GPU catalogue, or show one GPU with the sources of its figures."""
    from simulator.cost.rows import gpu_rows
    from simulator.hardware.gpu import gpu

    rows = gpu_rows()
    if name is not None:
        wanted = gpu(name).name
        rows = [row for row in rows if row["gpu"] == wanted]
    if as_json:
        print_json(rows if name is None else rows[0])
    elif name is not None:
        print_fields(rows[0])
    else:
        print_rows([_short(row) for row in rows], title="GPUs (dense peaks; GB/s and TFLOP/s are decimal)")


def _short(row: Row) -> dict[str, object]:
    return {
        "gpu": row["gpu"],
        "memory GiB": _scaled(row, "memory_bytes", 2**30),
        "GB/s": _scaled(row, "memory_bandwidth", 1e9),
        "16-bit TFLOP/s": _scaled(row, "bf16_flops" if row["bf16_flops"] else "fp16_flops", 1e12),
        "fp8": _scaled(row, "fp8_flops", 1e12),
        "fp4": _scaled(row, "fp4_flops", 1e12),
        "link": f"{row['link']} {_scaled(row, 'link_bandwidth', 1e9):,.0f} GB/s",
        "per node": row["gpus_per_node"],
        "watts": row["tdp_w"],
        "USD/h": row["price_per_hour"],
        "spot": row["spot_price_per_hour"],
    }


def _scaled(row: Row, key: str, unit: float) -> float | None:
    value = row[key]
    return None if value is None else round(float(value) / unit, 1)
