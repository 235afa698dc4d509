"""The report's view of power, and of what the replicas that were held cost."""

from __future__ import annotations

from simulator.metrics.energy import EnergyPlan, clocks_over_time, power_over_time
from simulator.metrics.summary import Summary
from simulator.replica.records import SimulationRecords
from simulator.report.figures import Figure, TimeAxis
from simulator.report.svg import Series, line_chart

_BINS = 160


def power_figures(summary: Summary, records: SimulationRecords, plan: EnergyPlan | None) -> list[Figure]:
    """Power over time; none without a plan, or where nothing happened."""
    energy, carbon = summary["energy"], summary["carbon"]
    if plan is None or energy is None or records.end <= 0:
        return []
    time = TimeAxis.over(records.end, _BINS)
    watts = power_over_time(records, plan, time.edges) / 1e3
    svg = line_chart(
        [Series("kW", time.middle, watts, 5, area=True)],
        x_label=time.label,
        y_label="kW of all GPUs",
        summary=f"Power over time: {watts.mean():.3g} kW on average, at most {watts.max():.3g} kW.",
        x_range=time.reach,
    )
    idle = energy["idle_kwh"] / energy["kwh"] if energy["kwh"] else 0.0
    caption = f"{energy['kwh']:.3g} kWh, of which {idle:.0%} is what the GPUs draw idle while they are held."
    if carbon is not None:
        caption += f" {carbon['gco2'] / 1e3:.3g} kg of CO2."
    if summary["cost"] is not None:
        caption += f" The replicas cost ${summary['cost']['usd']:,.2f}."
    figures = [Figure("Power", svg, caption)]
    if records.clocks is not None:
        figures.append(_clocks(summary, records, time))
    return figures


def _clocks(summary: Summary, records: SimulationRecords, time: TimeAxis) -> Figure:
    """What a controller made of the clocks."""
    shown = clocks_over_time(records, (time.edges[1:] + time.edges[:-1]) / 2)
    found = summary["clocks"]
    svg = line_chart(
        [Series(name, time.middle, 100 * clock, 1 + i % 5) for i, (name, clock) in enumerate(shown.items())],
        x_label=time.label,
        y_label="% of the maximum clock",
        summary=f"Clocks over time: {found['orders']} orders, {found['brakes']} of them to brake.",
        x_range=time.reach,
    )
    caption = f"Mean over each group's replicas. {found['orders']} orders, {found['brakes']} of them to brake; "
    caption += f"at most {found['peak_2s_w'] / 1e3:.3g} kW over 2 s."
    return Figure("Clocks", svg, caption)
