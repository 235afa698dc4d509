"""``windtunnel policies``."""

from __future__ import annotations

from simulator.cli.console import print_json, print_rows
from simulator.cli.options import AsJson


def policies(as_json: AsJson = False) -> None:
    """List the registered policies. Any other is named as package.module:Class."""
    from simulator.core.registry import first_line
    from simulator.scheduling import POLICIES

    rows = [{"kind": POLICIES.kind, "name": name, "": first_line(entry)} for name, entry in POLICIES.items()]
    if as_json:
        print_json([{"kind": row["kind"], "name": row["name"], "description": row[""]} for row in rows])
    else:
        print_rows(rows)
