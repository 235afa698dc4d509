"""Copies between host and device, and within the device's memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from profiler.measure.errors import Unmeasurable
from profiler.measure.suites.case import Case, Context


def build(point: Mapping[str, Any], ctx: Context) -> Case:
    direction, size = point["direction"], point["size_bytes"]
    if not ctx.device.is_cuda and direction != "d2d":
        raise Unmeasurable("the CPU is its own host")
    count = ctx.sets(2 * size)
    sources, targets = [], []
    for _ in range(count):
        host = torch.randint(127, (size,), dtype=torch.int8)
        if ctx.device.is_cuda and direction != "d2d":
            host = host.pin_memory()
        sources.append(host if direction == "h2d" else host.to(ctx.device.device))
        empty = torch.empty(size, dtype=torch.int8, pin_memory=ctx.device.is_cuda and direction == "d2h")
        targets.append(empty if direction == "d2h" else empty.to(ctx.device.device))

    def call(i: int) -> object:
        return targets[i % count].copy_(sources[i % count], non_blocking=True)

    def error() -> float:
        call(0)
        ctx.device.synchronize()
        return 0.0 if torch.equal(targets[0].cpu(), sources[0].cpu()) else 1.0

    return Case(call, error, 0.0, bytes=float(size * (2 if direction == "d2d" else 1)))
