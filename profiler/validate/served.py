"""A measured server as a scenario, so that a comparison runs exactly what a user's scenario would."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from simulator.cluster.simulation import simulate
from simulator.core.errors import ModelError
from simulator.core.random import streams
from simulator.metrics.requests import Latencies, latencies
from simulator.model.architecture import Model
from simulator.model.catalogue import model
from simulator.replica.records import SimulationRecords
from simulator.scenario.config import Scenario
from simulator.scenario.engine import EngineSpec, HardwareSpec, ModelSpec
from simulator.scenario.setup import Setup, build
from simulator.scenario.workload import Preset, Workload
from traces.trace import Trace

# A scenario says what arrives too; comparisons hand the trace over themselves.
_NOTHING = Workload(preset=Preset(name="azure-conv", num_requests=1))


@dataclass(frozen=True, slots=True)
class Options:
    """What the user may choose. Nothing here is tuned by a comparison.

    calibration: as ``hardware.calibration`` of a scenario. overhead: instead of the engine version's own preset.
    """

    calibration: str = "auto"
    overhead: str | None = None
    seed: int = 0
    # For ``fit_overhead`` alone: the declared training part only, with these seconds in place of the preset's.
    only_training: bool = False
    seconds: tuple[tuple[str, float], ...] = ()


def named(name: str) -> tuple[Model, str | None]:
    """A model by its published name, and the quantization a name such as ``...-FP8`` adds to one the catalogue has.

    Raises ModelError for a model that the catalogue does not have in any format.
    """
    try:
        return model(name), None
    except ModelError:
        base, _, last = name.rpartition("-")
        if not base or last.lower() not in FORMATS:
            raise
        return model(base), FORMATS[last.lower()]


# Last words of published names.
FORMATS = {
    "fp8": "fp8",
    "fp4": "nvfp4",
    "nvfp4": "nvfp4",
    "awq": "int4",
    "int4": "int4",
    "w8a8": "int8",
    "int8": "int8",
}


@dataclass(frozen=True, slots=True)
class Server:
    """A server of a measurement in the words of a scenario."""

    model: str
    gpu: str
    engine: Mapping[str, Any]
    overhead: str  # preset
    dtype: str = "auto"
    quantization: str | None = None
    kv_cache_dtype: str = "auto"

    def setup(self, options: Options) -> Setup:
        """Built as ``windtunnel run`` builds it. Raises UserError."""
        found = _built(repr((self, options.calibration, options.overhead)), lambda: self._build(options))
        if not options.seconds:
            return found
        given: dict[str, Any] = dict(options.seconds)
        overhead = replace(found.cost.overhead, **given)
        return replace(found, cost=found.cost.with_overhead(overhead))

    def _build(self, options: Options) -> Setup:
        served, quantization = named(self.model)
        return build(
            Scenario(
                model=ModelSpec(
                    name=served.name,
                    dtype=self.dtype,
                    quantization=self.quantization or quantization,
                    kv_cache_dtype=self.kv_cache_dtype,
                ),
                hardware=hardware(self.gpu, options.calibration),
                engine=EngineSpec(**{"overhead": options.overhead or self.overhead, **self.engine}),
                workload=_NOTHING,
            )
        )


_SETUPS: dict[str, Setup] = {}


def _built(key: str, make: Callable[[], Setup]) -> Setup:
    """Setups are pure and their price tables fill up: rows of one server share them."""
    if key not in _SETUPS:
        if len(_SETUPS) >= 128:
            _SETUPS.clear()
        _SETUPS[key] = make()
    return _SETUPS[key]


def hardware(gpu: str, calibration: str) -> HardwareSpec:
    """The GPU of a scenario with its calibration."""
    return HardwareSpec(gpu=gpu, calibration=calibration)


def serve(setup: Setup, trace: Trace, *, users: int | None = None) -> SimulationRecords:
    """Serve a trace, open loop or with so many users."""
    args = setup.args
    return simulate(
        trace, args, setup.cost, setup.num_gpu_blocks, max_model_len=args.max_model_len, closed_loop_users=users
    )


def client_latencies(setup: Setup, records: SimulationRecords) -> Latencies:
    """As a client over HTTP sees them: the engine's, and what the API server adds to the first token."""
    seen = latencies(records.requests)
    added = setup.cost.overhead.request_s(records.requests.prompt_tokens.astype(np.float64))
    e2e = seen.e2e + added
    return Latencies(seen.ttft + added, seen.tpot, e2e, e2e / records.requests.output_tokens, seen.queue)


def uniform_lengths(nominal: int, low: float, n: int, seed: int, name: str) -> np.ndarray:
    """Whole lengths uniform in [low, 1] x nominal, as InferenceX's client draws them."""
    rng = streams(seed).stream(f"validate.{name}")
    return rng.integers(int(low * nominal), nominal + 1, n)
