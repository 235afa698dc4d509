"""``windtunnel models``."""

from __future__ import annotations

from typing import Annotated

import typer

from simulator.cli.console import print_fields, print_json, print_rows
from simulator.cli.options import AsJson
from simulator.core.units import format_bytes


def models(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="One model of the catalogue, in detail.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the model catalogue, or show one model. Scenarios also take the path of any Hugging Face config.json."""
    from simulator.cost.rows import model_rows
    from simulator.model.catalogue import model

    rows = model_rows()
    if name is not None:
        wanted = model(name).name
        rows = [row for row in rows if row["model"] == wanted]
    if as_json:
        print_json(rows if name is None else rows[0])
    elif name is not None:
        print_fields(rows[0])
    else:
        print_rows([_short(row) for row in rows], title="Models (KV: bytes per token of all layers in 16 bits)")


def _short(row: dict[str, str | int | float | None]) -> dict[str, object]:
    total, active = (_billions(row[key]) for key in ("parameters", "active_parameters"))
    return {
        "model": row["model"],
        "parameters": f"{total}, {active} active" if row["experts"] else total,
        "layers": row["layers"],
        "attention": row["attention"],
        "experts": row["experts"],
        "KV/token": format_bytes(float(row["kv_bytes_per_token"] or 0)),
        "max_model_len": row["max_model_len"],
        "weights": row["weights"],
    }


def _billions(count: str | float | None) -> str:
    size = float(count or 0)
    return f"{size / 1e12:.3g}T" if size >= 1e12 else f"{size / 1e9:.3g}B"
