"""A plan file, read and checked; its space spread out into designs."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from simulator.core.errors import ScenarioError, UserError
from simulator.core.names import suggestion
from simulator.planning.spec import Plan, plan_adapter
from simulator.scenario.config import Scenario
from simulator.scenario.energy import intensities
from simulator.scenario.load import anchored
from simulator.scenario.load import located as in_file
from simulator.scenario.source import Source, Value, override, read_source
from simulator.scenario.validate import data_path, explain


@dataclass(frozen=True)
class Setting:
    """One field's value in a design. ``name``: what the plan calls the value, if it does."""

    path: str
    value: Any
    name: str = ""

    @property
    def said(self) -> str:
        """In a few words."""
        return self.name or said(self.path, self.value)

    @property
    def short(self) -> str:
        """In a table, under the field's name."""
        return self.name or ("default" if self.value is None else short(self.value))


@dataclass(frozen=True)
class Design:
    """One point of the space. ``scenario`` None: it cannot be one, for the ``reason``."""

    index: int
    settings: tuple[Setting, ...]
    scenario: Scenario | None
    reason: str = ""

    @property
    def label(self) -> str:
        """``H100-SXM, tensor_parallel_size 4``: what tells it from the others."""
        return ", ".join(one.said for one in self.settings) or "as in the scenario"


@dataclass(frozen=True)
class PlanFile:
    """A plan, its name, and its designs in the order of the space."""

    name: str
    path: Path
    plan: Plan
    designs: tuple[Design, ...]


def said(path: str, value: Any) -> str:
    """A setting in a few words."""
    last = path.rpartition(".")[2]
    if path in ("hardware", "hardware.gpu", "model", "model.name"):
        return str(value)
    if value is None:
        return f"no {last}" if last == "quantization" else f"{last} as by default"
    if isinstance(value, str) and last in ("quantization", "policy", "router"):
        return f"{last} {value}"
    return f"{last} {short(value)}"


def short(value: Any) -> str:
    """A value in a table: groups of replicas as ``1 prefill + 2 decode``, other structures as JSON."""
    if isinstance(value, list) and all(isinstance(one, dict) and "name" in one for one in value):
        return " + ".join(f"{one.get('replicas', 1)} {one['name']}" for one in value) or "none"
    return value if isinstance(value, str) else json.dumps(value)


def read_plan(path: str | Path) -> PlanFile:
    """Raises ScenarioError that names file, line and field. Designs that cannot be are kept, with the reason."""
    source = read_source(path)
    try:
        plan = plan_adapter().validate_python(source.data)
    except ValidationError as error:
        raise located(error, source, (*Plan.__dataclass_fields__, "optimiser")) from None
    file = Path(path)
    base = base_of(plan, source)
    with _in_space(plan, source):
        _check(base, plan)
    return PlanFile(plan.name or file.stem, file, plan, _designs(plan, base))


_UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")


@contextmanager
def _in_space(plan: Plan, source: Source) -> Iterator[None]:
    """A UserError about a value that ``_put`` has put in its place gets the line of the space that it comes from."""
    try:
        yield
    except UserError as error:
        for path in plan.space:
            mark, there = f"--set {path}=null", error.where or ""
            if there.startswith(mark):
                rest = there.removeprefix(mark).removeprefix(f": {path}")
                where = f"{source.where(('space', path))}{rest}"
                raise ScenarioError(error.message, where=where, remedy=error.remedy) from None
        raise


def located(
    error: ValidationError, source: Source, fields: Iterable[str], root: tuple[str | int, ...] = ()
) -> ScenarioError:
    """The first mistake, with its place in the file. fields: valid names, for a field that is unknown."""
    found = error.errors(include_url=False)
    details = next((one for one in found if one["type"] in _UNKNOWN), found[0])  # its name explains what is missing
    kind, here = details["type"], source.data
    for part in root:
        here = here[str(part)]  # type: ignore[assignment]
    unknown = kind in _UNKNOWN
    path = (*root, *data_path(details["loc"], here, whole=unknown or kind == "missing"))
    if unknown:
        deeper = len(path) > len(root) + 1  # of ``api_price``
        remedy = suggestion(str(path[-1]), fields, noun="fields of a plan" if not root else "options")
        remedy = "See docs/planning.md." if deeper else remedy
        return ScenarioError(f"unknown field {path[-1]!r}.", where=source.where(path), remedy=remedy)
    if kind == "missing":
        message = f"the field {path[-1]!r} is missing."
        return ScenarioError(message, where=source.where(path[:-1]), remedy="Add it.")
    message, help_ = explain(details)
    return ScenarioError(message, where=source.where(path), remedy=help_)


class Asked(Protocol):
    """What every question has."""

    @property
    def name(self) -> str | None: ...
    @property
    def scenario(self) -> str | dict[str, Any]: ...
    @property
    def requests(self) -> int | None: ...


def base_of(plan: Asked, source: Source) -> Source:
    """The scenario that all designs share, not validated yet."""
    if isinstance(plan.scenario, str):
        base = read_source(source.folder / plan.scenario)
    else:
        marks = {path[1:]: mark for path, mark in source.marks.items() if path[:1] == ("scenario",)}
        body: dict[str, Value] = {"name": plan.name or Path(source.name).stem, **plan.scenario}
        base = Source(source.name, source.folder, body, marks)
    return base if plan.requests is None else override(base, [f"{_count_field(base)}={plan.requests}"])


def _count_field(base: Source) -> str:
    workload = base.data.get("workload")
    kinds = workload if isinstance(workload, dict) else {}
    for kind in ("preset", "synthetic"):
        if kinds.get(kind) is not None:
            return f"workload.{kind}.num_requests"
    remedy = "Cut the trace with workload.transforms (head, window)."
    raise ScenarioError("'requests' is for presets and synthetic loads.", where=base.name, remedy=remedy)


def _check(base: Source, plan: Plan) -> None:
    """What makes the question one that has an answer. Raises ScenarioError."""
    fixed = replace(base, data={**base.data})
    for path, values in plan.space.items():
        fixed = _put(fixed, path, _choices(path, values)[0].value)
    scenario = anchored(fixed)
    with in_file(fixed):
        intensities(scenario)  # every design would fail by a region that is none
    if scenario.slo is None:
        remedy = "Add slo: to the scenario (a preset, or ttft_s, tpot_s, itl_s, e2e_s)."
        raise ScenarioError("without an SLO nothing tells what a design sustains.", where=base.name, remedy=remedy)
    if scenario.workload.closed_loop is not None:
        where = base.where(("workload", "closed_loop"))
        remedy = "Leave closed_loop out."
        raise ScenarioError("in a closed loop the rate is not a question.", where=where, remedy=remedy)
    if plan.find != "lowest-bill" and (scenario.cluster.scaling is not None or scenario.cluster.faults):
        what = "scaling" if scenario.cluster.scaling is not None else "faults"
        remedy = f"Leave {what} out, or find: lowest-bill."
        message = "a rate is searched for replicas that stay."
        raise ScenarioError(message, where=base.where(("cluster", what)), remedy=remedy)


def _designs(plan: Plan, base: Source) -> tuple[Design, ...]:
    found = []
    choices = [_choices(path, values) for path, values in plan.space.items()]
    for index, settings in enumerate(itertools.product(*choices)):
        try:
            scenario = anchored(_settled(base, settings))
            found.append(Design(index, settings, scenario))
        except UserError as error:
            found.append(Design(index, settings, None, reason_of(error)))
    return tuple(found)


def reason_of(error: UserError) -> str:
    """What is wrong and what would help, as sentences."""
    return f"{error.message.rstrip('.')}. {error.remedy or ''}".strip()


def _choices(path: str, values: Sequence[Any] | Mapping[str, Any]) -> list[Setting]:
    if isinstance(values, Mapping):
        return [Setting(path, value, name) for name, value in values.items()]
    return [Setting(path, value) for value in values]


def _settled(base: Source, settings: Sequence[Setting]) -> Source:
    for one in settings:
        base = _put(base, one.path, one.value)
    return base


def _put(source: Source, path: str, value: Any) -> Source:
    """A value, not text, put where ``--set path=null`` makes a place for it."""
    source = override(source, [f"{path}=null"])
    here: Any = source.data
    *parents, last = path.split(".")
    for key in parents:
        here = here[int(key)] if isinstance(here, list) else here[key]
    here[int(last) if isinstance(here, list) else last] = value
    return source
