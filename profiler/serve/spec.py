"""Experiment files: which engine serves which requests. YAML or JSON, checked like campaigns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profiler.measure.campaign import FLOAT, Check, each, fields_of, model_of, one_of, positive, read_checked, whole
from profiler.measure.errors import CampaignError
from profiler.measure.models import DecoderShape


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lognormal tokens, clipped."""

    median: float
    sigma: float
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class EngineSettings:
    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    num_blocks: int


@dataclass(frozen=True, slots=True)
class Experiment:
    """``rates``: requests per second by the name of the load. ``probe_*``: closed batches that show the engine's own
    time per step; they are no part of the loads.
    """

    name: str
    device: str
    dtype: str
    threads: int | None
    clock: str
    seed: int
    engines: tuple[str, ...]
    models: tuple[DecoderShape, ...]
    settings: EngineSettings
    requests: int
    rounds: int  # the loads are served so often, in turn; the median of each request counts
    rates: Mapping[str, Mapping[str, float]]  # model -> load -> requests/s
    prompt: Lengths
    output: Lengths
    probe_batches: tuple[int, ...]
    probe_prompt: int
    probe_output: int


def _mapping(value: Any) -> str | None:
    return None if isinstance(value, dict) and value else f"must be a mapping, not {value!r}"


TOP: Mapping[str, tuple[Check, Any]] = {
    "name": (lambda v: None if isinstance(v, str) and v else f"must be a text, not {v!r}", None),
    "device": (one_of("cuda", "cpu"), "cuda"),
    "dtype": (FLOAT, "bf16"),
    "threads": (whole(null=True), None),
    "clock": (one_of("wall", "cpu"), "wall"),
    "seed": (whole(0), 0),
    "engines": (each(one_of("transformers", "decoder")), ["transformers", "decoder"]),
    "models": (each(_mapping), None),
    "settings": (_mapping, {}),
    "workload": (_mapping, {}),
    "probe": (_mapping, {}),
}
SETTINGS: Mapping[str, tuple[Check, Any]] = {
    "max_num_seqs": (whole(), 64), "max_num_batched_tokens": (whole(), 2048), "block_size": (whole(), 256),
    "num_blocks": (whole(), 1024),
}  # fmt: skip
WORKLOAD: Mapping[str, tuple[Check, Any]] = {
    "requests": (whole(2), 100), "rounds": (whole(), 1),
    "rates": (_mapping, {"low": 1.0}), "prompt": (_mapping, {}), "output": (_mapping, {}),
}  # fmt: skip
LENGTHS: Mapping[str, tuple[Check, Any]] = {
    "median": (positive, 200), "sigma": (positive, 0.7), "low": (whole(), 4), "high": (whole(), 2048),
}  # fmt: skip
PROBE: Mapping[str, tuple[Check, Any]] = {
    "batches": (each(whole()), [1, 2, 4, 8, 16, 32, 64]), "prompt": (whole(), 128), "output": (whole(3), 16),
}  # fmt: skip


def load(path: Path) -> Experiment:
    """Raises CampaignError with file, line and field."""
    data, where, _ = read_checked(path)
    top = fields_of(data, TOP, "", where)
    settings = fields_of(top["settings"], SETTINGS, "settings", where)
    workload = fields_of(top["workload"], WORKLOAD, "workload", where)
    probe = fields_of(top["probe"], PROBE, "probe", where)
    lengths = {
        key: Lengths(**fields_of(workload[key], LENGTHS, f"workload.{key}", where)) for key in ("prompt", "output")
    }
    models = tuple(model_of(m, i, where) for i, m in enumerate(top["models"] or []))
    if not models:
        raise CampaignError("at least one model is needed", where=where("models"))
    experiment = Experiment(
        name=top["name"], device=top["device"], dtype=top["dtype"], threads=top["threads"], clock=top["clock"],
        seed=top["seed"], engines=tuple(top["engines"]), models=models, settings=EngineSettings(**settings),
        requests=workload["requests"], rounds=workload["rounds"],
        rates=_rates(workload["rates"], models, where), prompt=lengths["prompt"], output=lengths["output"],
        probe_batches=tuple(probe["batches"]), probe_prompt=probe["prompt"], probe_output=probe["output"],
    )  # fmt: skip
    _fits(experiment, where)
    return experiment


def _rates(given: Mapping[str, Any], models: tuple[DecoderShape, ...], where: Any) -> dict[str, dict[str, float]]:
    """Loads for every model, or one mapping per model's name."""
    if all(isinstance(v, dict) for v in given.values()):
        unknown = set(given) - {m.name for m in models}
        if unknown:
            raise CampaignError(f"no model is called {min(unknown)!r}", where=where("workload.rates"))
        per_model = {m.name: dict(given.get(m.name, {})) for m in models}
    else:
        per_model = {m.name: dict(given) for m in models}
    for name, rates in per_model.items():
        for load_name, rate in rates.items():
            if bad := positive(rate):
                raise CampaignError(bad, where=where(f"workload.rates.{name}.{load_name}"))
    return per_model


def _fits(e: Experiment, where: Any) -> None:
    """No engine may run out of KV blocks here: eviction is not what is compared."""
    longest = -(-(e.prompt.high + e.output.high) // e.settings.block_size)
    if e.settings.num_blocks < longest * e.settings.max_num_seqs:
        raise CampaignError(
            f"{e.settings.num_blocks} blocks do not hold {e.settings.max_num_seqs} sequences of {longest} blocks",
            where=where("settings.num_blocks"),
            remedy=f"At least {longest * e.settings.max_num_seqs}.",
        )
