"""What the device can do at best: FLOP/s of a large product, bytes/s of a large copy and of a large read, a launch."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from profiler.measure.devices import Effort, Timing, summary
from profiler.measure.suites import gemm
from profiler.measure.suites.case import Case, Context


def build(point: Mapping[str, Any], ctx: Context) -> Case:
    quantity = point["quantity"]
    if quantity == "flops":
        size = point["size"]
        case = gemm.build({"m": size, "n": size, "k": size, "dtype": point["dtype"]}, ctx)
        case.fields = lambda t: {"value": case.flops / t.p10_s}
        return case
    if quantity == "bandwidth" and point["backend"] == "read":
        return _read(point, ctx)
    if quantity == "bandwidth":
        elements = point["size"] // 4
        source = torch.ones(elements, device=ctx.device.device)
        target = torch.empty_like(source)
        moved = 8.0 * elements
        return Case(lambda _: target.copy_(source), None, bytes=moved, fields=lambda t: {"value": moved / t.p10_s})
    if quantity == "launch":
        tiny = torch.zeros(1, device=ctx.device.device)
        return Case(lambda _: tiny.add_(1.0), None, fields=lambda t: {"value": t.median_s})
    return Case(lambda _: None, None, time=_timer(), fields=lambda t: {"value": t.median_s})


def _read(point: Mapping[str, Any], ctx: Context) -> Case:
    """One row through a tall matrix: what streams weights best, and counts reads alone."""
    rows = point["size"] // 4 // 4096
    matrix, row = ctx.randn(rows, 4096, dtype="fp32"), ctx.randn(1, 4096, dtype="fp32")
    moved = 4.0 * rows * 4096

    def call(_: int) -> object:
        return torch.nn.functional.linear(row, matrix)

    return Case(call, None, bytes=moved, fields=lambda t: {"value": moved / t.p10_s})


def _timer() -> Callable[[Effort], Timing]:
    def measure(effort: Effort) -> Timing:
        found = []
        for _ in range(max(effort.min_repeats, 100)):
            start = time.perf_counter()
            found.append(time.perf_counter() - start)
        return summary(found, "perf_counter")

    return measure
