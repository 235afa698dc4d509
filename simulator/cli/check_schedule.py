"""``windtunnel check-schedule``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from simulator.cli.console import out


class Mode(StrEnum):
    """How the replay advances."""

    span = "span"
    step = "step"
    both = "both"


def check_schedule(
    logs: Annotated[list[Path], typer.Argument(metavar="LOG...", help="Schedule logs, jsonl or jsonl.gz.")],
    mode: Annotated[Mode, typer.Option(help="Advance in spans, step by step, or one after the other.")] = Mode.both,
) -> None:
    """Replay logs of the real vLLM scheduler and compare every step; stops at the first difference with exit code 1."""
    from simulator.cluster.schedule_log import check_schedule as check
    from simulator.cluster.schedule_log import read_schedule_log

    modes = [Mode.step, Mode.span] if mode is Mode.both else [mode]
    width = max(len(path.name) for path in logs)
    for path in logs:
        log = read_schedule_log(path)
        for one in modes:
            found = check(log, step_mode=one is Mode.step)
            line = f"{path.name:{width}}  {one.value}  {found.matched}/{found.total} steps matched"
            out().print(line, markup=False, soft_wrap=True)
            if not found.ok:
                out().print(str(found.difference), markup=False, soft_wrap=True)
                raise typer.Exit(1)
