"""``windtunnel policies``."""

from __future__ import annotations

from typing import Any

from simulator.cli.console import print_json, print_rows
from simulator.cli.options import AsJson


def policies(as_json: AsJson = False) -> None:
    """List the registered policies. Any other is named as package.module:Class."""
    from simulator.core.registry import Registry, first_line
    from simulator.faults import FAULTS
    from simulator.kv.eviction import EVICTIONS
    from simulator.planning.optimisers import OPTIMISERS
    from simulator.routing import ROUTERS
    from simulator.scaling import CONTROLLERS, SCALERS
    from simulator.scheduling import POLICIES

    registries: tuple[Registry[Any], ...] = (POLICIES, ROUTERS, SCALERS, CONTROLLERS, FAULTS, EVICTIONS, OPTIMISERS)
    rows = [
        {"kind": registry.kind, "name": name, "": first_line(entry)}
        for registry in registries
        for name, entry in registry.items()
    ]
    if as_json:
        print_json([{"kind": row["kind"], "name": row["name"], "description": row[""]} for row in rows])
    else:
        print_rows(rows)
