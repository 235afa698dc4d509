"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ScenarioFile = Annotated[Path, typer.Argument(metavar="SCENARIO", help="Scenario file (YAML).", show_default=False)]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Override a field, e.g. engine.max_num_seqs=64. Repeatable."),
]
FormatOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--option",
        metavar="NAME=VALUE",
        help="The format's own (`windtunnel trace formats`), such as conversations=40.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Dtype = Annotated[str, typer.Option(help="Type of weights and activations.")]
Quantization = Annotated[str | None, typer.Option(help="Weight quantization: fp8, int8, int4, mxfp4, nvfp4.")]
KvCacheDtype = Annotated[str, typer.Option(help="Type of the KV cache.")]
