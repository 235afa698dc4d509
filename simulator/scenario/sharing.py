"""Groups on the GPUs of others: they must fit in the memory together, and are paid for once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from simulator.core.errors import ScenarioError
from simulator.scenario.cluster import GroupSpec

if TYPE_CHECKING:
    from simulator.scenario.setup import Setup


def on_shared_gpus(specs: Sequence[GroupSpec], setups: Sequence[Setup]) -> tuple[Setup, ...]:
    """What groups without GPUs of their own cost and draw: nothing, and only what their steps add to idle power.

    Raises ScenarioError when engines on the same GPUs ask for more memory than there is.
    """
    asked: dict[str, list[Setup]] = {}
    for spec, setup in zip(specs, setups, strict=True):
        asked.setdefault(spec.shares or spec.name, []).append(setup)
    for host, together in asked.items():
        share = sum(setup.args.gpu_memory_utilization for setup in together)
        if len(together) > 1 and share > 1 + 1e-9:
            names = ", ".join(setup.name for setup in together)
            raise ScenarioError(
                f"the engines on the GPUs of {host!r} ({names}) ask for {share:.2f} of their memory.",
                where="cluster.groups",
                remedy=f"Set engine.gpu_memory_utilization of each, such as {0.92 / len(together):.2f}.",
            )
    return tuple(
        setup
        if spec.shares is None
        else replace(
            setup,
            usd_per_hour=None if setup.usd_per_hour is None else 0.0,
            power=replace(setup.power, idle_w=0.0, tdp_w=setup.power.tdp_w - setup.power.idle_w),
        )
        for spec, setup in zip(specs, setups, strict=True)
    )
