"""``windtunnel profile``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from simulator.cli.console import err
from simulator.core.errors import UserError


class Device(StrEnum):
    """What is measured."""

    cuda = "cuda"
    cpu = "cpu"


def profile(
    campaign: Annotated[
        Path | None,
        typer.Argument(metavar="[CAMPAIGN]", help="Campaign file (YAML or JSON), or the name of a shipped one."),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder of measurements.jsonl; what it holds is not measured again.")
    ] = Path("measurements"),
    device: Annotated[Device | None, typer.Option(help="Instead of the campaign's.")] = None,
    quick: Annotated[bool, typer.Option(help="Few repeats per point.")] = False,
    time_limit_s: Annotated[float | None, typer.Option(help="Stop cleanly after so long; run again to go on.")] = None,
) -> None:
    """Time kernels, layers and steps on this machine's GPU or CPU; needs torch (the extra named profile)."""
    from profiler.measure.__main__ import campaign_file
    from profiler.measure.campaign import load
    from profiler.measure.errors import CampaignError

    try:
        plan = load(campaign_file(campaign, device, quick=quick))
        if device:
            plan = plan.with_device(device)
        from profiler.measure.runner import run_campaign

        run_campaign(
            plan, out, time_limit_s=time_limit_s, quick=quick, say=lambda text: err().print(text, markup=False)
        )
    except CampaignError as error:
        raise UserError(error.message, where=error.where, remedy=error.remedy) from None
    except ModuleNotFoundError as error:
        raise UserError(
            f"{error.name} is not installed",
            where="windtunnel profile",
            remedy="Install it: pip install 'windtunnel[profile]'.",
        ) from None
