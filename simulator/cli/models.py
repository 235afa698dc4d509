"""``windtunnel models``."""

from __future__ import annotations

from typing import Annotated

import typer

from simulator.cli.console import print_json, print_rows
from simulator.cli.options import AsJson


def models(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="One model, in detail.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the model catalogue, or show one model. Any other is a path of its Hugging Face config.json."""
    from simulator.model import catalogue

    rows = catalogue.rows() if name is None else catalogue.details(name)
    if as_json:
        print_json(rows)
    else:
        print_rows(rows)
