"""Runs a campaign: points in order, each saved before the next, with progress, resumption and a time limit."""

from __future__ import annotations

import datetime as dt
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from profiler.measure.campaign import Campaign
from profiler.measure.devices import Device, Effort
from profiler.measure.errors import CampaignError, Unmeasurable
from profiler.measure.journal import SCHEMA, Journal
from profiler.measure.points import Point, points
from profiler.measure.suites import BUILDERS
from profiler.measure.suites.case import Case, Context

Say = Callable[[str], None]
DEATHS = 2  # of the process in one point, before the point is passed over
CPU_ROTATE_BYTES = 64 << 20  # about the weights of a model one would serve on a CPU core


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run of a campaign did."""

    path: Path
    measured: int
    skipped: int
    resumed: int  # points the file held already
    left: int  # not reached before the time limit
    seconds: float


def run_campaign(
    campaign: Campaign, out: Path, *, time_limit_s: float | None = None, say: Say | None = None, quick: bool = False
) -> Outcome:
    """Measures what ``out/measurements.jsonl`` does not hold yet. Raises CampaignError, never for a single point.

    quick: few repeats per point, for a first look and for tests.
    """
    say = say or (lambda text: print(text, file=sys.stderr, flush=True))  # noqa: T201
    start = time.monotonic()
    device = Device(campaign.device, threads=campaign.threads, clock=campaign.clock)
    wanted = points(campaign)
    with Journal(out / "measurements.jsonl") as journal:
        _header(journal, campaign, device)
        todo = [p for p in wanted if p["id"] not in journal.done]
        resumed = len(wanted) - len(todo)
        if resumed:
            say(f"{journal.path}: {resumed} of {len(wanted)} points are there already")
        counts = {"point": 0, "skipped": 0}
        context = _context(campaign, device)
        for suite, group in _by_suite(todo):
            if not _suite(suite, group, campaign, context, journal, counts, _Clock(start, time_limit_s, len(todo), say),
                          quick=quick):  # fmt: skip
                break
        done = sum(counts.values())
    seconds = time.monotonic() - start
    say(f"{done} points in {seconds:.0f} s, {counts['skipped']} skipped, {len(todo) - done} left: {journal.path}")
    return Outcome(journal.path, counts["point"], counts["skipped"], resumed, len(todo) - done, seconds)


@dataclass(slots=True)
class _Clock:
    start: float
    limit_s: float | None
    total: int
    say: Say
    spoken: float = 0.0

    def over(self) -> bool:
        return self.limit_s is not None and time.monotonic() - self.start > self.limit_s

    def progress(self, done: int, suite: str) -> None:
        """A line every two seconds: share done, time left at the present pace."""
        now = time.monotonic()
        if now - self.spoken < 2 and done < self.total:
            return
        self.spoken = now
        left = (now - self.start) / max(done, 1) * (self.total - done)
        self.say(f"[{done}/{self.total}] {suite}: {100 * done / max(self.total, 1):.0f} %, about {left:.0f} s left")


def _by_suite(todo: list[Point]) -> Iterator[tuple[str, list[Point]]]:
    """Suites in the order of their points, round after round."""
    groups: dict[tuple[int, str], list[Point]] = {}
    for point in todo:
        groups.setdefault((point.get("round", 0), point["suite"]), []).append(point)
    yield from ((suite, group) for (_, suite), group in groups.items())


def _suite(
    suite: str, group: list[Point], campaign: Campaign, context: Context, journal: Journal, counts: dict[str, int],
    clock: _Clock, *, quick: bool,
) -> bool:  # fmt: skip
    """False when the time limit was reached."""
    effort = _effort(campaign.timing, quick=quick)
    before, energy, start = context.device.meter.state(), context.device.meter.energy_j(), time.monotonic()
    here = {"point": 0, "skipped": 0}
    for point in group:
        if clock.over():
            return False
        kind, row = _safely(point, context, effort, journal)
        journal.write(kind, row)
        here[kind] += 1
        counts[kind] += 1
        if kind == "skipped" and not context.device.alive():
            raise CampaignError(
                f"the device was lost: {row['reason']}",
                where=str(journal.path),
                remedy="Run again in a new process: what is measured is kept, this point is passed over.",
            )
        clock.progress(sum(counts.values()), suite)
    seconds, after = time.monotonic() - start, context.device.meter.energy_j()
    joules = None if energy is None or after is None else after - energy
    journal.write("suite", {
        "suite": suite, "seconds": round(seconds, 3), "points": here["point"], "skipped": here["skipped"],
        "energy_j": joules, "mean_power_w": None if joules is None else joules / seconds,
        "before": before, "after": context.device.meter.state(), "yardstick_s": context.device.yardstick(),
    })  # fmt: skip
    return True


def _safely(point: Point, context: Context, effort: Effort, journal: Journal) -> tuple[str, dict[str, Any]]:
    """As ``measure``; a point that ended the process twice (a crash, a hang that was killed) is passed over."""
    if journal.deaths(point["id"]) >= DEATHS:
        return "skipped", {**point, "reason": f"the process ended {DEATHS} times while measuring this"}
    with journal.at_work_on(point["id"]):
        return measure(point, context, effort)


def measure(point: Point, context: Context, effort: Effort) -> tuple[str, dict[str, Any]]:
    """(``point`` or ``skipped``, the row). Whatever a point raises is its reason to be skipped."""
    context.device.tidy()
    context.generator.manual_seed(int(point["id"][:8], 16))  # same data whatever was measured before
    try:
        case = BUILDERS[point["op"]](point, context)
        return "point", _measured(point, case, context.device, effort)
    except Exception as fault:  # noqa: BLE001 - recorded; one bad point must not end hours of measuring
        reason = f"{type(fault).__name__}: {fault}" if not isinstance(fault, Unmeasurable) else str(fault)
        if isinstance(fault, torch.OutOfMemoryError if hasattr(torch, "OutOfMemoryError") else MemoryError):
            reason = "out of memory"
    context.device.free()  # only now: the fault held the frames, and they the buffers
    return "skipped", {**point, "reason": " ".join(reason.split())[:300]}


def _measured(point: Point, case: Case, device: Device, effort: Effort) -> dict[str, Any]:
    error = _check(case)
    timing = case.time(effort) if case.time else device.time(case.call, effort)
    return {
        **point, **asdict(timing), "check": error, "check_limit": case.limit if case.error else None,
        "flops": case.flops, "bytes": case.bytes, "clock_mhz": device.meter.clock_mhz(),
        "temperature_c": device.meter.temperature_c(), **(case.fields(timing) if case.fields else {}),
    }  # fmt: skip


def _check(case: Case) -> float | None:
    """Relative error of the kernel's result. Raises Unmeasurable when it is wrong: a wrong kernel's time is no time."""
    if case.error is None:
        return None
    with torch.no_grad():
        error = case.error()
    if not error <= case.limit:  # NaN fails too
        raise Unmeasurable(f"wrong result: relative error {error:.3g} above {case.limit:.3g}")
    return error


def _effort(timing: Mapping[str, float], *, quick: bool) -> Effort:
    effort = Effort(int(timing["warmup"]), int(timing["min_repeats"]), int(timing["max_repeats"]), timing["target_s"])
    return Effort(1, 5, 20, min(0.03, effort.target_s)) if quick else effort


def _context(campaign: Campaign, device: Device) -> Context:
    rotate = campaign.rotate_bytes
    if rotate is None:
        rotate = 2 * device.cache_bytes if device.is_cuda else CPU_ROTATE_BYTES
    generator = torch.Generator(device=device.device)
    return Context(device, {m.name: m for m in campaign.models}, rotate, generator)


def _header(journal: Journal, campaign: Campaign, device: Device) -> None:
    """At the start and at every resumption. Raises CampaignError where another device wrote the file."""
    about = device.describe()
    if journal.header is not None and journal.header["device"]["name"] != about["name"]:
        raise CampaignError(
            f"was measured on {journal.header['device']['name']}, this is {about['name']}",
            where=str(journal.path),
            remedy="Choose another --out.",
        )
    journal.write("header", {
        "schema": SCHEMA, "campaign": campaign.name, "campaign_sha256": campaign.sha256,
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"), "device": about,
        "versions": device.versions(), "clocks": device.meter.state(), "clock": campaign.clock, "seed": campaign.seed,
        "models": [m.config() | {"name": m.name} for m in campaign.models],
    })  # fmt: skip
