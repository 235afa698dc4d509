"""``windtunnel tiers``: what a GB of each KV tier is worth."""

from __future__ import annotations

from pathlib import Path
from shlex import join
from typing import Annotated

import typer

from simulator.cli.console import err, print_json, print_rows
from simulator.cli.options import AsJson, ScenarioFile, Settings


def tiers(
    scenario: ScenarioFile,
    settings: Settings = None,
    folder: Annotated[Path | None, typer.Option("--out", help="Folder for a page with pictures, tiers.html.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run a scenario without its KV tiers, with the first, with the first two: hits, bytes, TTFT, value of a GB."""
    from simulator.planning.tier_worth import tier_worth
    from simulator.scenario.load import anchored, located
    from simulator.scenario.source import override, read_source

    source = override(read_source(scenario), settings or [])
    with located(source):
        found = tier_worth(anchored(source), _tick)
    if folder is not None:
        from simulator.planning.tier_page import write_page

        asked = [word for setting in settings or [] for word in ("--set", setting)]
        command = join(["windtunnel", "tiers", str(scenario), *asked])
        path = write_page(found, folder, title=source.name, command=command)
        err().print(f"Written: {path}", markup=False, soft_wrap=True)
    if as_json:
        print_json([row.to_dict() for row in found])
        return
    print_rows(
        [
            {
                "up to": row.tiers,
                "GB": round(row.capacity_gb),
                "GPU hits": f"{row.gpu_hit_share:.1%}",
                "tier hits": f"{row.tier_hit_share:.1%}",
                "GB read": round(row.read_gb),
                "GB written": round(row.written_gb),
                "mean TTFT, s": f"{row.mean_ttft_s:.3f}",
                "p90 TTFT, s": f"{row.p90_ttft_s:.3f}",
                "busy GPU s": round(row.busy_gpu_s),
                "saved per GB: TTFT, us": _of(row.ttft_saved_s_per_gb, 1e6),
                "GPU s": _of(row.busy_gpu_s_saved_per_gb, 1.0),
                "USD a month": _of(row.usd_saved_per_gb_month, 1.0),
            }
            for row in found
        ],
        title="Each tier added to those before it",
    )


def _of(value: float | None, unit: float) -> str:
    return "" if value is None else f"{value * unit:.3g}"


def _tick(text: str) -> None:
    console = err()
    if console.is_terminal:
        console.print(f"up to {text}", markup=False, style="dim")
