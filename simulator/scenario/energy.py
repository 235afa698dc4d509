"""What a scenario's energy and GPUs cost: power by group, carbon by the hour, the price of what was held."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Sequence
from pathlib import Path

from simulator import hardware
from simulator.core.errors import ScenarioError
from simulator.core.names import suggestion
from simulator.metrics.energy import EnergyPlan
from simulator.metrics.fleet import lifetimes
from simulator.replica.records import SimulationRecords
from simulator.scenario.config import Scenario
from simulator.scenario.lifecycle import CarbonSpec
from simulator.scenario.load import at
from simulator.scenario.setup import Setup

REGIONS = Path(hardware.__file__).with_name("carbon.csv")  # a day of 24 hours, UTC


def energy_plan(scenario: Scenario, groups: Sequence[Setup]) -> EnergyPlan:
    """Raises ScenarioError when the carbon series cannot be read."""
    powers = {group.name: (group.power, group.num_gpus) for group in groups}
    return EnergyPlan(powers, scenario.energy.pue, intensities(scenario))


def intensities(scenario: Scenario) -> list[float] | None:
    """Carbon intensity, g/kWh, by the hour from the start; None: not counted. Raises ScenarioError."""
    carbon = scenario.energy.carbon
    if carbon is None:
        return None
    with at("energy.carbon"):
        return _series(carbon)


def _series(spec: CarbonSpec) -> list[float]:
    """g/kWh from the hour at which the simulation starts."""
    if spec.gco2_per_kwh is not None:
        values = list(spec.gco2_per_kwh)
    elif spec.region is not None:
        values = _column(REGIONS, spec.region)
    else:
        values = _column(Path(str(spec.path)), str(spec.zone))
    if spec.start_hour >= len(values) > 1:
        raise ScenarioError(f"start_hour {spec.start_hour} is beyond the {len(values)} hours of the series.")
    start = spec.start_hour % len(values)
    return values[start:] + values[:start]


def _column(path: Path, zone: str) -> list[float]:
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
        rows = list(csv.reader(line for line in text.splitlines() if not line.startswith("#")))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ScenarioError(f"{path} cannot be read: {error}.", remedy="Give a CSV with one row per hour.") from error
    header = [name.strip() for name in rows[0]] if rows else []
    if zone not in header:
        raise ScenarioError(f"{path} has no column {zone!r}.", remedy=suggestion(zone, header, noun="columns"))
    values: list[float] = []
    column = header.index(zone)
    for number, row in enumerate(rows[1:], 2):
        try:
            value = float(row[column])
        except (IndexError, ValueError):
            value = -1.0
        if not 0 <= value < float("inf"):
            raise ScenarioError(f"{path}:{number}: column {zone} holds no intensity.", remedy="Correct the row.")
        values.append(value)
    if not values:
        raise ScenarioError(f"{path} has no rows.", remedy="Give one row per hour.")
    return values


def paid_per_hour(groups: Sequence[Setup], records: SimulationRecords, window: tuple[float, float]) -> float | None:
    """USD per hour on average over the window, of the replicas held in it; None when a price is not known."""
    prices = {group.name: group.usd_per_hour for group in groups}
    held = lifetimes(records, *window)
    total = 0.0
    for replica, seconds in zip(records.replicas, held.tolist(), strict=True):
        price = prices[replica.group]
        if price is None:
            return None
        total += price * seconds
    duration = window[1] - window[0]
    return total / duration if duration > 0 else None
