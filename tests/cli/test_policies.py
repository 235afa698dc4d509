"""``windtunnel policies`` lists every register that scenarios name policies from."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from simulator.cli.main import app
from simulator.kv.eviction import EVICTIONS
from simulator.routing import ROUTERS
from simulator.scheduling import POLICIES


def test_every_register_is_listed_with_a_line_on_each_policy() -> None:
    result = CliRunner().invoke(app, ["policies", "--json"])
    assert result.exit_code == 0
    rows = json.loads(result.stdout)
    for registry in (POLICIES, ROUTERS, EVICTIONS):
        assert {row["name"] for row in rows if row["kind"] == registry.kind} == set(registry.names())
    assert all(row["description"] for row in rows)
