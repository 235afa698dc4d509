"""Models by name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from simulator.core.errors import ModelError
from simulator.core.names import suggestion
from simulator.model.architecture import Model
from simulator.model.config import from_config, load_config

CATALOGUE = Path(__file__).with_name("catalogue.yaml")


@cache
def _rows() -> Mapping[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = yaml.safe_load(CATALOGUE.read_text(encoding="utf-8"))
    return rows


@cache
def models() -> Mapping[str, Model]:
    """The catalogue by hub name, in the order of the file."""
    return {
        name: from_config(row, name, row.get("source", f"config.json of huggingface.co/{name}"))
        for name, row in _rows().items()
    }


@cache
def _by_key() -> Mapping[str, Model]:
    keys: dict[str, Model] = {}
    for name, row in _rows().items():
        for alias in (name, *row.get("aliases", ())):
            # A published format is part of the name: ...-Instruct-FP8 is not ...-Instruct.
            for spelling in {alias, alias + "-Instruct"}:
                keys[_key(spelling)] = models()[name]
    return keys


def _key(name: str) -> str:
    short = name.rsplit("/", 1)[-1].lower().translate(str.maketrans("", "", "-_. "))
    return short.removeprefix("meta")


def model(name: str | Path) -> Model:
    """A model by hub name (``meta-llama/Llama-3.1-8B``), short name (``llama-3.1-8b``) or path of a config.json.

    Raises ModelError with the nearest known name.
    """
    path = Path(name)
    if path.suffix == ".json" or (path / "config.json").is_file():
        return load_config(path)
    found = _by_key().get(_key(str(name)))
    if found is None:
        close = suggestion(str(name).rsplit("/", 1)[-1], [n.rsplit("/", 1)[-1] for n in models()], noun="known models")
        raise ModelError(
            f"unknown model {str(name)!r}",
            where="model",
            remedy=f"{close} Any other model: give the path of its config.json.",
        )
    return found
