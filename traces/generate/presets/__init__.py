"""Workloads fitted to real traces, by name. Parameters only, no copied rows; each file names its source and licence.

The YAML files beside this one are written by ``python -m traces.generate.fit`` and say how well they fit. They use the
same words as a scenario's workload: ``{process: gamma, rate: 5, burstiness: 0.8}``, ``{distribution: lognormal, ...}``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from simulator.core.errors import TraceError
from simulator.core.names import suggestion
from traces.generate.arrivals import ARRIVALS, Arrivals, RateCurve
from traces.generate.distributions import DISTRIBUTIONS, Distribution
from traces.generate.lengths import Lengths
from traces.generate.sessions import Sessions
from traces.generate.synthesize import Client, Generators, synthesize, synthesize_clients
from traces.trace import Trace

FOLDER = Path(__file__).parent
PRESETS: tuple[str, ...] = tuple(sorted(path.stem for path in FOLDER.glob("*.yaml")))


@dataclass(frozen=True, slots=True)
class Preset:
    """A fitted workload. Either ``arrivals`` and ``lengths`` (and perhaps ``sessions``) or ``clients``."""

    name: str
    description: str
    source: str
    licence: str
    rate: float  # requests/s of the trace it was fitted to
    requests: int  # rows it was fitted to
    requests_per_start: float = 1.0  # turns per conversation: what a rate of requests means for its arrivals
    arrivals: Arrivals | None = None
    lengths: Lengths | None = None
    sessions: Sessions | None = None
    clients: tuple[Client, ...] = ()

    def steady(self) -> Preset:
        """The same with every curve of the day taken out; local burstiness stays."""
        flat = tuple(replace(c, arrivals=_flat(c.arrivals)) for c in self.clients)
        return replace(self, arrivals=_flat(self.arrivals) if self.arrivals is not None else None, clients=flat)


def generate(
    name: str,
    *,
    num_requests: int,
    rate: float | None = None,
    seed: int | None = None,
    generators: Generators | None = None,
    steady: bool = False,
) -> Trace:
    """A trace like the named preset's.

    rate: requests/s on average over the trace; None: the original's. seed or generators: where the draws come from
    (exactly one). steady: leave the changes of the rate over hours out. Raises TraceError for an unknown name.
    """
    if (seed is None) == (generators is None):
        raise TraceError("generate needs either a seed or generators, and not both")
    if rate is not None and not 0 < rate < float("inf"):
        raise TraceError(f"rate must be > 0 and finite, not {rate}")
    if num_requests < 1:
        raise TraceError(f"num_requests must be >= 1, not {num_requests}")
    preset = load_preset(name)
    rngs = generators if generators is not None else Generators.of(seed or 0)
    return generate_preset(preset.steady() if steady else preset, num_requests=num_requests, rate=rate, generators=rngs)


def generate_preset(preset: Preset, *, num_requests: int, generators: Generators, rate: float | None = None) -> Trace:
    """``generate`` for a preset at hand."""
    rngs = generators
    wanted = preset.rate if rate is None else rate
    source = f"{preset.name} (generated like: {preset.source})"
    if preset.clients:
        return synthesize_clients(
            preset.clients, rate=wanted, num_requests=num_requests, generators=rngs, source=source
        )
    if preset.sessions is None:
        return _at_rate(preset, wanted, num_requests, rngs, source)
    # Conversations unfold over time, so how many requests one start gives depends on the window: correct the rate of
    # starts, from the same point of the streams, until the requests come at the rate that was asked for.
    start_rate, before = wanted / preset.requests_per_start, rngs.state()
    for _ in range(4):
        rngs.restore(before)
        trace = _at_rate(preset, start_rate, num_requests, rngs, source)
        if not trace.duration > 0 or abs(trace.rate / wanted - 1) < 0.005:
            break
        start_rate *= wanted / trace.rate
    return trace


def _at_rate(preset: Preset, rate: float, num_requests: int, rngs: Generators, source: str) -> Trace:
    assert preset.arrivals is not None
    assert preset.lengths is not None
    return synthesize(
        arrivals=preset.arrivals.at_rate(rate, num_requests),
        lengths=preset.lengths,
        sessions=preset.sessions,
        num_requests=num_requests,
        generators=rngs,
        source=source,
    )


def load_preset(name: str) -> Preset:
    """The preset of that name. Raises TraceError with the nearest name."""
    import yaml

    if name not in PRESETS:
        raise TraceError(f"unknown workload preset {name!r}", remedy=suggestion(name, PRESETS, noun="presets"))
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C one, where there is one, is ten times faster
    spec = yaml.load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"), Loader=loader)  # noqa: S506  # both are safe
    return preset_of(name, spec)


def preset_of(name: str, spec: Mapping[str, Any]) -> Preset:
    """A preset from the content of its YAML file."""
    plain = {f.name: spec[f.name] for f in fields(Preset) if f.name in spec and f.name not in _PARSED}
    parsed = {key: parse(spec[key]) for key, parse in _PARSED.items() if key in spec}
    return Preset(name=name, **plain, **parsed)


def parse_arrivals(spec: Mapping[str, Any]) -> Arrivals:
    """``{process: gamma, rate: 5, burstiness: 0.8}``."""
    found: Arrivals = _parse(spec, "process", ARRIVALS, {"within": parse_arrivals}, "arrival processes")
    return found


def parse_distribution(spec: Mapping[str, Any] | float) -> Distribution:
    """``{distribution: lognormal, median: 200, sigma: 1}``; a bare number is fixed."""
    if isinstance(spec, int | float):
        return DISTRIBUTIONS["fixed"](spec)  # type: ignore[call-arg]  # the Protocol has no constructor
    found: Distribution = _parse(spec, "distribution", DISTRIBUTIONS, {}, "distributions")
    return found


def parse_lengths(spec: Mapping[str, Any]) -> Lengths:
    """``{prompt: ..., output: ..., correlation: 0.1}``."""
    nested = {"prompt": parse_distribution, "output": parse_distribution}
    found: Lengths = _fields(Lengths, spec, nested, "lengths")
    return found


def parse_sessions(spec: Mapping[str, Any]) -> Sessions:
    """The fields of ``Sessions``; ``turns``, ``think_time_s`` and ``new_tokens`` are distributions."""
    nested = dict.fromkeys(("turns", "think_time_s", "new_tokens"), parse_distribution)
    found: Sessions = _fields(Sessions, spec, nested, "sessions")
    return found


def _parse_clients(spec: list[Mapping[str, Any]]) -> tuple[Client, ...]:
    nested = {"arrivals": parse_arrivals, "lengths": parse_lengths}
    return tuple(_fields(Client, client, nested, "client") for client in spec)


def _parse(spec: Mapping[str, Any], tag: str, kinds: Mapping[str, Any], nested: Mapping[str, Any], noun: str) -> Any:
    kind = str(spec.get(tag))
    if kind not in kinds:
        raise TraceError(f"unknown {tag} {kind!r}", remedy=suggestion(kind, kinds, noun=noun))
    inner = {key: value for key, value in spec.items() if key != tag}
    return _fields(kinds[kind], inner, nested, kind)


def _fields(kind: Any, spec: Mapping[str, Any], nested: Mapping[str, Any], what: str) -> Any:
    known = [f.name for f in fields(kind)]
    for key in spec:
        if key not in known:
            raise TraceError(f"{what} has no field {key!r}", remedy=suggestion(key, known))
    values = {key: nested[key](value) if key in nested else value for key, value in spec.items()}
    try:
        return kind(**values)
    except TypeError as error:
        raise TraceError(f"{what}: {error}") from error


def _flat(arrivals: Arrivals) -> Arrivals:
    return arrivals.within if isinstance(arrivals, RateCurve) else arrivals


_PARSED: dict[str, Any] = {
    "arrivals": parse_arrivals,
    "lengths": parse_lengths,
    "sessions": parse_sessions,
    "clients": _parse_clients,
}
