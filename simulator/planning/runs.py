"""Runs of many variations: what was built for one is used again for the next, and a run becomes one flat row."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from simulator import __version__
from simulator.planning.code import code_digest
from simulator.scenario.build import build_groups
from simulator.scenario.config import Scenario
from simulator.scenario.load import digest
from simulator.scenario.setup import Setup
from simulator.scenario.trace import make_trace
from traces.trace import Trace

T = TypeVar("T")
MAX_KEPT = 24  # engines and traces kept in memory

Row = dict[str, Any]


class Workshop:
    """Engines and traces by what they are made from; the last few stay."""

    def __init__(self) -> None:
        self._groups: OrderedDict[str, tuple[Setup, ...]] = OrderedDict()
        self._traces: OrderedDict[str, Trace] = OrderedDict()

    def groups(self, scenario: Scenario) -> tuple[Setup, ...]:
        """Raises UserErrors like ``build_groups``."""
        key = repr((scenario.model, scenario.hardware, scenario.engine, scenario.cluster, scenario.slo))
        return _kept(self._groups, key, lambda: build_groups(scenario))

    def trace(self, scenario: Scenario) -> Trace:
        """Raises UserErrors like ``make_trace``."""
        key = repr((scenario.workload, scenario.seed))
        return _kept(self._traces, key, lambda: make_trace(scenario.workload, scenario.seed))


def _kept(store: OrderedDict[str, T], key: str, make: Callable[[], T]) -> T:
    if key not in store:
        store[key] = make()
        while len(store) > MAX_KEPT:
            store.popitem(last=False)
    store.move_to_end(key)
    return store[key]


WORKSHOP = Workshop()  # of this process


def run_key(scenario: Scenario) -> str:
    """What a result is of: everything that can change it, the files it reads, and the code."""
    parts = [digest(scenario), __version__, code_digest()]
    parts += [_file_digest(path) for path in _files(scenario)]
    return hashlib.sha256("/".join(parts).encode()).hexdigest()


def _files(scenario: Scenario) -> list[str]:
    found = [] if scenario.workload.trace is None else [scenario.workload.trace.path]
    models = [scenario.model, *(group.model for group in scenario.cluster.groups if group.model is not None)]
    found += [model.config for model in models if model.config is not None]
    carbon = scenario.energy.carbon
    found += [carbon.path] if carbon is not None and carbon.path is not None else []
    return found + [path for fault in scenario.cluster.faults if isinstance(path := fault.options.get("path"), str)]


@cache
def _file_digest(path: str) -> str:
    try:
        with Path(path).open("rb") as handle:
            return hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError:
        return "missing"  # the run itself says so


def flat(summary: Mapping[str, Any], prefix: str = "") -> Row:
    """A summary as one row: ``latency.ttft_s.p99`` and so on. Lists and the classes of labels are left out."""
    row: Row = {}
    for name, value in summary.items():
        if isinstance(value, Mapping):
            if name != "classes":
                row |= flat(value, f"{prefix}{name}.")
        elif not isinstance(value, list | tuple):
            row[f"{prefix}{name}"] = value
    return row
