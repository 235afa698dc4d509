"""Serves the loads of an experiment with each engine and writes one JSON file per (model, engine)."""

from __future__ import annotations

import datetime as dt
import gc
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from profiler.measure.decoder import Decoder
from profiler.measure.devices import Device
from profiler.measure.errors import CampaignError
from profiler.measure.kernels import dtype_of
from profiler.measure.models import DecoderShape
from profiler.serve import record
from profiler.serve.decoder_engine import DecoderEngine
from profiler.serve.spec import Experiment
from profiler.serve.transformers_engine import TransformersEngine
from profiler.serve.workload import closed_batch, requests

Say = Callable[[str], None]


def serve(
    experiment: Experiment, out: Path, *, say: Say | None = None, time_limit_s: float | None = None
) -> list[Path]:
    """Files written; one that is there already is kept. An engine that cannot run is reported, passed over, and tried
    last the next time (``.failed`` beside its file says why). Raises CampaignError when it took the device with it.
    """
    say = say or (lambda text: print(text, file=sys.stderr, flush=True))  # noqa: T201
    begun, paths = time.monotonic(), []
    device = Device(experiment.device, threads=experiment.threads, clock=experiment.clock)
    wanted = [(out / f"served-{s.name}-{name}.json", s, name) for s in experiment.models for name in experiment.engines]
    for path, shape, name in sorted(wanted, key=lambda w: _failed(w[0]).exists()):
        if path.exists():
            say(f"{path} is there already")
            continue
        if time_limit_s is not None and time.monotonic() - begun > time_limit_s:
            say(f"{path}: left for the next run (time limit)")
            continue
        reason = _served(experiment, device, shape, name, path, say)
        gc.collect()
        device.free()
        if reason is None:
            say(f"{path}")
            paths.append(path)
            continue
        say(f"{path}: not served: {reason}")
        if not device.alive():
            raise CampaignError(f"the device was lost: {reason}", where=str(path), remedy="Run again in a new process.")
    return paths


def _failed(path: Path) -> Path:
    return path.with_suffix(".failed")


def _served(
    experiment: Experiment, device: Device, shape: DecoderShape, name: str, path: Path, say: Say
) -> str | None:  # fmt: skip
    """Why the engine could not serve; None: it did, and ``path`` holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _failed(path).write_text("the process ended while it served\n", encoding="utf-8")
    try:
        record.write(_run(experiment, device, shape, name, say), path)
    except Exception as error:  # noqa: BLE001 - the other engines still serve
        reason = f"{type(error).__name__}: {error}"
        _failed(path).write_text(reason + "\n", encoding="utf-8")
        return reason
    _failed(path).unlink()
    return None


def _run(e: Experiment, device: Device, shape: DecoderShape, name: str, say: Say) -> record.Run:
    engine = _engine(e, device, shape, name)
    engine.serve(closed_batch(2, min(e.probe_prompt, 32), 4, shape.vocab))  # warm-up
    probe: list[record.Step] = []
    loads: list[record.Load] = []
    for turn in range(e.rounds):
        for batch in e.probe_batches:
            probe += engine.serve(closed_batch(batch, e.probe_prompt, e.probe_output, shape.vocab))[1]
        for load, rate in e.rates[shape.name].items():
            start, before = time.perf_counter(), device.yardstick()
            served, steps = engine.serve(requests(e, rate, load, shape.vocab))
            loads.append(record.Load(load, rate, served, steps, [before, device.yardstick()], turn))
            seconds = time.perf_counter() - start
            say(f"{shape.name}, {name}, round {turn + 1}, {load}: {len(served)} requests in {seconds:.0f} s")
    settings = {f: getattr(e.settings, f) for f in e.settings.__slots__}
    return record.Run(
        device=device.describe() | {"state": device.meter.state()}, versions=device.versions(),
        engine={"name": name, "settings": settings, **engine.about()}, model=shape.config() | {"name": shape.name},
        dtype=e.dtype, seed=e.seed, clock=e.clock, date=dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        probe=probe, loads=loads,
    )  # fmt: skip


def _engine(e: Experiment, device: Device, shape: DecoderShape, name: str) -> Any:
    dtype = dtype_of(e.dtype)
    if name == "transformers":
        return TransformersEngine(shape, device, dtype, e.settings)
    slots = e.settings.num_blocks * e.settings.block_size
    longest = max(e.prompt.high + e.output.high, e.probe_prompt + e.probe_output)
    decoder = Decoder(shape, device.kind, dtype, num_slots=slots, max_positions=longest + 1, seed=e.seed)
    with torch.no_grad():
        return DecoderEngine(decoder, e.settings, device.clock)
