"""``windtunnel schema``."""

from __future__ import annotations

from simulator.cli.console import print_json


def schema() -> None:
    """Print the JSON Schema of scenario files, for editors.

    In VS Code, put `# yaml-language-server: $schema=docs/scenario.schema.json` on the first line of a scenario.
    """
    from simulator.scenario.validate import json_schema

    print_json(json_schema())
