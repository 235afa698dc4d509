"""HTML pages, one file each: no network, no scripts, readable on screen, on paper and in the dark."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def pages(folder: Path) -> Environment:
    """Templates of a folder; they extend ``page.html``, which brings the style."""
    return Environment(
        loader=FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
