"""A scenario from a file, with its paths anchored; and back to YAML."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from simulator.core.errors import UserError
from simulator.scenario.cluster import ClusterSpec
from simulator.scenario.config import Scenario
from simulator.scenario.engine import EngineSpec, HardwareSpec, ModelSpec
from simulator.scenario.source import Loader, Source, Value, override, read_source
from simulator.scenario.validate import adapter, validate
from simulator.scenario.workload import Workload

SECTIONS = {
    "model": ModelSpec,
    "hardware": HardwareSpec,
    "engine": EngineSpec,
    "cluster": ClusterSpec,
    "workload": Workload,
}


def load(path: str | Path, settings: Sequence[str] = ()) -> Scenario:
    """The scenario of a YAML file, with ``a.b=value`` overrides.

    Paths in it (relative to the file, or to the working directory when given by ``settings``) become relative to the
    working directory; a missing name becomes the file's. Raises ScenarioError.
    """
    return anchored(override(read_source(path), list(settings)))


def anchored(source: Source) -> Scenario:
    """The validated scenario of a source, its paths starting where the source lies."""
    scenario = validate(inherited(source))
    if scenario.name is None:
        stem = re.sub(r"[^\w.-]+", "-", Path(source.name).stem, flags=re.ASCII).strip("-.") or "scenario"
        scenario = replace(scenario, name=stem)
    return with_paths(scenario, lambda field, path: os.path.normpath(_folder(source, field) / path))


def inherited(source: Source) -> Source:
    """What a group of replicas does not say of its engine, the scenario's engine says."""
    cluster, engine = source.data.get("cluster"), source.data.get("engine")
    if not (isinstance(cluster, dict) and isinstance(engine, dict)):
        return source
    given = cluster.get("groups")
    if not isinstance(given, list):
        return source
    groups: list[Value] = []
    for group in given:
        own = group.get("engine") if isinstance(group, dict) else None
        groups.append(
            {**group, "engine": {**engine, **own}} if isinstance(group, dict) and isinstance(own, dict) else group
        )
    return replace(source, data={**source.data, "cluster": {**cluster, "groups": groups}})


def _folder(source: Source, field: str) -> Path:
    """Paths in a file start at the file; paths on the command line where the user is."""
    return Path() if source.where(_path(field)).startswith("--set") else source.folder


def _path(field: str) -> tuple[str | int, ...]:
    return tuple(int(part) if part.isdigit() else part for part in field.split("."))


def with_paths(scenario: Scenario, move: Callable[[str, str], str]) -> Scenario:
    """The scenario with each path in it replaced by ``move(field, path)``."""
    if scenario.workload.trace is not None:
        moved = move("workload.trace.path", scenario.workload.trace.path)
        trace = replace(scenario.workload.trace, path=moved)
        scenario = replace(scenario, workload=replace(scenario.workload, trace=trace))
    if scenario.model.config is not None:
        config = move("model.config", scenario.model.config)
        scenario = replace(scenario, model=replace(scenario.model, config=config))
    scenario = replace(scenario, engine=_with_draft(scenario.engine, "engine", move))
    if scenario.energy.carbon is not None and scenario.energy.carbon.path is not None:
        moved = move("energy.carbon.path", scenario.energy.carbon.path)
        carbon = replace(scenario.energy.carbon, path=moved)
        scenario = replace(scenario, energy=replace(scenario.energy, carbon=carbon))
    faults = tuple(
        replace(fault, options={**fault.options, "path": move(f"cluster.faults.{i}.options.path", path)})
        if isinstance(path := fault.options.get("path"), str)
        else fault
        for i, fault in enumerate(scenario.cluster.faults)
    )
    groups = tuple(
        replace(group, model=replace(group.model, config=move(f"cluster.groups.{i}.model.config", group.model.config)))
        if group.model is not None and group.model.config is not None
        else group
        for i, group in enumerate(scenario.cluster.groups)
    )
    groups = tuple(
        group
        if group.engine is None
        else replace(group, engine=_with_draft(group.engine, f"cluster.groups.{i}.engine", move))
        for i, group in enumerate(groups)
    )
    return replace(scenario, cluster=replace(scenario.cluster, groups=groups, faults=faults))


def _with_draft(engine: EngineSpec, field: str, move: Callable[[str, str], str]) -> EngineSpec:
    draft = engine.speculative_config
    if draft is None or draft.config is None:
        return engine
    moved = move(f"{field}.speculative_config.config", draft.config)
    return replace(engine, speculative_config=replace(draft, config=moved))


@contextmanager
def at(field: str) -> Iterator[None]:
    """A UserError raised inside is about this field of the scenario: ``where`` starts with its dotted path."""
    try:
        yield
    except UserError as error:
        raise type(error)(error.message, where=_field(field, error.where), remedy=error.remedy) from error


@contextmanager
def within(group: str, sections: Collection[str]) -> Iterator[None]:
    """What a UserError raised inside says of one of ``sections`` is about the group's own."""
    try:
        yield
    except UserError as error:
        section = (error.where or "").partition(".")[0].partition(":")[0]
        where = f"{group}.{error.where}" if section in sections else error.where
        raise type(error)(error.message, where=where, remedy=error.remedy) from error


def _field(field: str, where: str | None) -> str:
    """Rooms below call a field by its bare name (``max_model_len``); give it its place in the scenario. What has its
    place already (``engine.policy``) keeps it."""
    section, _, rest = (where or "").partition(".")
    if rest.partition(".")[0] in getattr(SECTIONS.get(section), "__dataclass_fields__", ()):
        return str(where)
    if where in (None, field.rpartition(".")[2]):
        return field
    for section, spec in (("engine", EngineSpec), ("model", ModelSpec), ("hardware", HardwareSpec)):
        if where in spec.__dataclass_fields__ and section != field.partition(".")[0]:
            return f"{section}.{where}"
    return f"{field}.{where}" if field == "model" and where in ModelSpec.__dataclass_fields__ else f"{field}: {where}"


@contextmanager
def located(source: Source) -> Iterator[None]:
    """A UserError raised inside that names a field (see ``at``) also gets the file and line where it is written."""
    try:
        yield
    except UserError as error:
        field, colon, rest = (error.where or "").partition(": ")
        path = _path(field)
        if path[0] not in Scenario.__dataclass_fields__:
            raise
        where = source.where(path) + colon + rest
        raise type(error)(error.message, where=where, remedy=error.remedy) from error


class _Dumper(yaml.SafeDumper):
    """Quotes exactly what the loader would otherwise take for something else than text."""


_Dumper.yaml_implicit_resolvers = Loader.yaml_implicit_resolvers


def to_dict(scenario: Scenario) -> dict[str, Any]:
    """Plain data that validates to an equal scenario; fields that are null are left out."""
    data: dict[str, Any] = adapter().dump_python(scenario, mode="json", exclude_none=True)
    return data


def to_yaml(scenario: Scenario) -> str:
    """YAML text that loads to an equal scenario."""
    return yaml.dump(to_dict(scenario), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def digest(scenario: Scenario) -> str:
    """SHA-256 of everything that can change the result: not the name, the outputs or the folders of files."""
    same = replace(with_paths(scenario, lambda _, path: Path(path).name), name=None, description="")
    data = {key: value for key, value in to_dict(same).items() if key not in ("output", "description")}
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
