"""A system's file: read, checked, and turned into runnable variants."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from simulator.core.errors import ScenarioError
from simulator.core.names import suggestion
from simulator.planning.optimisers.file import read_options
from simulator.scenario.config import Scenario
from simulator.scenario.load import anchored
from simulator.scenario.source import SHORTHANDS, Source, Value, override, read_source
from simulator.survey.expression import Formula
from simulator.survey.spec import Measure, Part, PublishedPrice, System, part_adapter, price_adapter, system_adapter

FOLDER = Path("scenarios/survey")
LISTED = "not-reproduced.yaml"
OWN = ("like", "mix", "price")  # keys of a variant that are not a scenario's


@dataclass(frozen=True)
class SystemFile:
    """A system with its file. ``name``: of the file, without the ending."""

    name: str
    path: Path
    system: System
    source: Source
    sha256: str


@dataclass(frozen=True)
class Variant:
    """One scenario to run, with what a scenario cannot say."""

    scenario: Scenario
    mix: tuple[tuple[Part, Scenario], ...]  # parts of the load; empty: the scenario's own workload
    prices: Mapping[str, PublishedPrice]  # by name of the group of replicas


def system_files(folder: Path = FOLDER, names: Iterable[str] = ()) -> list[SystemFile]:
    """The systems of a folder, sorted by name; only those named, where any are. Raises ScenarioError.

    One file per system, and ``not-reproduced.yaml`` for those that are not run: by name, what else a system has.
    """
    files = [path for path in sorted(folder.glob("*.yaml")) if path.name != LISTED]
    found: dict[str, Path | SystemFile] = {path.stem: path for path in files}
    if (folder / LISTED).exists():
        found |= {file.name: file for file in _listed(folder / LISTED)}
    if not found:
        raise ScenarioError(
            "holds no system's file.", where=str(folder), remedy="Run in a checkout, or give --systems."
        )
    wanted = list(names) or list(found)
    for name in wanted:
        if name not in found:
            raise ScenarioError(f"unknown system {name!r}.", remedy=suggestion(name, found, noun="systems"))
    chosen = [found[name] for name in dict.fromkeys(wanted)]
    return [read_system(file) if isinstance(file, Path) else file for file in chosen]


def _listed(path: Path) -> list[SystemFile]:
    source = read_source(path)
    files = []
    for name, entry in source.data.items():
        system: System = _validated(system_adapter(), entry, source, (name,))
        if system.not_reproduced is None:
            where = source.where((name,))
            raise ScenarioError(f"{name!r} says no 'not_reproduced'.", where=where, remedy="Give it a file of its own.")
        files.append(SystemFile(name, path, system, source, hashlib.sha256(path.read_bytes()).hexdigest()))
    return files


def read_system(path: Path) -> SystemFile:
    """One system's file. Formulas, names of variants and measurements are checked; scenarios when they are built."""
    source = read_source(path)
    system = _validated(system_adapter(), source.data, source, ())
    file = SystemFile(path.stem, path, system, source, hashlib.sha256(path.read_bytes()).hexdigest())
    for name, measure in system.measure.items():
        _check_measure(file, name, measure)
    for index, check in enumerate(system.band):
        _check_names(file, ("band", index, "value"), check.value, system.measure)
    return file


def _check_measure(file: SystemFile, name: str, measure: Measure) -> None:
    bodies = file.system.bodies
    if measure.of not in bodies:
        where = file.source.where(("measure", name, "of"))
        remedy = suggestion(measure.of, bodies, noun="variants")
        raise ScenarioError(f"there is no variant {measure.of!r}.", where=where, remedy=remedy)
    earlier = list(file.system.measure)[: list(file.system.measure).index(name)]
    if isinstance(measure.rate, str):
        _check_names(file, ("measure", name, "rate"), measure.rate, earlier)
    for key, text in measure.values.items():
        _parsed(file, ("measure", name, "values", key), text)
    if measure.optimise is not None:
        asked = measure.optimise
        root = ("measure", name, "optimise")
        read_options(asked.optimiser, asked.options | dict.fromkeys(asked.computed, 1.0), file.source, root)
        for key, text in asked.computed.items():
            _check_names(file, (*root, "computed", key), text, earlier)
    if measure.capacity is not None:
        _parsed(file, ("measure", name, "capacity", "meets"), measure.capacity.meets)


def _parsed(file: SystemFile, path: tuple[str | int, ...], text: str) -> Formula:
    try:
        return Formula(text)
    except ScenarioError as error:
        raise ScenarioError(error.message, where=file.source.where(path), remedy=error.remedy) from None


def _check_names(file: SystemFile, path: tuple[str | int, ...], text: str, known: Iterable[str]) -> None:
    valid = set(known)
    for name in sorted(_parsed(file, path, text).names - valid):
        where = file.source.where(path)
        raise ScenarioError(f"{text!r}: nothing is measured as {name!r}.", where=where, remedy=suggestion(name, valid))


def variant(file: SystemFile, name: str, settings: Mapping[str, Any]) -> Variant:
    """The scenario of a variant with some of its fields set. Raises ScenarioError with the place in the file."""
    body = merged(file, name)
    own = {key: body.pop(key) for key in OWN if key in body}
    if "mix" in own:
        body.setdefault("workload", own["mix"][0].get("workload"))
    place = ("variants", name) if name in file.system.variants else (name,)
    source = Source(f"{file.path} ({name})", file.path.parent, body, _marks(file.source, place))
    source = _set(source, settings)
    scenario = replace(anchored(source), name=f"{file.name}-{name}")
    parts = _validated(part_adapter(), own.get("mix", ()), file.source, (*place, "mix"))
    prices = _validated(price_adapter(), own.get("price", {}), file.source, (*place, "price"))
    mix = tuple((part, anchored(replace(source, data=source.data | {"workload": part.workload}))) for part in parts)
    return Variant(scenario, mix, prices)


def merged(file: SystemFile, name: str) -> dict[str, Any]:
    """A variant's body over what it is like, over what all share."""
    bodies, chain = file.system.bodies, [name]
    while (above := bodies[chain[-1]].get("like")) is not None:
        if above not in bodies or above in chain:
            remedy = suggestion(str(above), set(bodies) - set(chain), noun="variants")
            raise ScenarioError(f"variant {chain[-1]!r} cannot be like {above!r}.", where=str(file.path), remedy=remedy)
        chain.append(above)
    body: dict[str, Any] = dict(file.system.common)
    for step in reversed(chain):
        body = overlaid(body, bodies[step])
    body.pop("like", None)
    return body


def overlaid(under: Any, over: Any, path: tuple[str, ...] = ()) -> Any:
    """``over`` on top of ``under``: mappings are joined, anything else replaced.

    Plain text that stands for a mapping is written out first; another kind of workload, arrival process or distribution
    replaces the whole mapping.
    """
    if isinstance(over, dict) and path in SHORTHANDS and isinstance(under, str | int):
        under = {SHORTHANDS[path]: under}
    if not (isinstance(under, dict) and isinstance(over, dict)) or _another_kind(under, over):
        return over
    joined = dict(under)
    for key, value in over.items():
        joined[key] = overlaid(under[key], value, (*path, key)) if key in under else value
    return joined


def _another_kind(under: dict[str, Any], over: dict[str, Any]) -> bool:
    sources = {"trace", "preset", "synthetic"}
    if sources & over.keys() and sources & under.keys() and sources & over.keys() != sources & under.keys():
        return True
    return any(key in under and key in over and under[key] != over[key] for key in ("process", "distribution"))


def _set(source: Source, settings: Mapping[str, Any]) -> Source:
    """``settings`` are values, not text: each is put where ``--set path=null`` makes a place for it."""
    for path, value in settings.items():
        source = override(source, [f"{path}=null"])
        here: Value = source.data
        *parents, last = path.split(".")
        for key in parents:
            here = here[int(key)] if isinstance(here, list) else here[key]  # type: ignore[index]
        if isinstance(here, list):
            here[int(last)] = value
        else:
            here[last] = value  # type: ignore[index]
    return source


def _marks(source: Source, place: tuple[str, ...]) -> dict[tuple[str | int, ...], str]:
    """Lines of a variant's values: its own where it has them, else those of the common part."""
    found: dict[tuple[str | int, ...], str] = {}
    for root in (("common",), place):
        size = len(root)
        found.update({path[size:]: mark for path, mark in source.marks.items() if path[:size] == root})
    return found


def _validated(adapter: TypeAdapter[Any], data: Any, source: Source, root: tuple[str, ...]) -> Any:
    try:
        return adapter.validate_python(data)
    except ValidationError as error:
        details = error.errors(include_url=False)[0]
        path = (*root, *(part for part in details["loc"] if isinstance(part, int | str)))
        raise ScenarioError(f"{details['msg']}.", where=source.where(path)) from None
