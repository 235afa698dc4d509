"""What serving leaves behind, as JSON: one file per (model, engine).

    {"schema": 1, "date", "device", "versions", "engine": {"name", "settings", ...}, "model": config.json with "name",
     "dtype", "seed", "clock" (wall, or cpu: CPU seconds of the process),
     "probe": [step, ...],
     "loads": [{"load": "low", "rate": 1.0, "round": 0, "yardstick_s": [before, after],
                "requests": [{"arrival_s", "prompt_tokens", "output_tokens", "first_token_s", "last_token_s"}, ...],
                "steps": [{"start_s", "end_s", "num_decodes", "context_sum", "chunks": [[new, computed], ...]}, ...]}]}

Times are seconds since the load began. ``arrival_s`` is when the request was due, whether or not the engine was free
to look. ``yardstick_s``: a fixed small product (``Device.yardstick``). ``context_sum``: KV tokens the decodes of the
step read, the new token's own included. Files are written whole or not at all.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from profiler.measure.journal import text_of

SCHEMA = 1


@dataclass(slots=True)
class Served:
    """One request, in order of arrival. NaN never: a request that did not finish fails the run."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    first_token_s: float = -1.0
    last_token_s: float = -1.0


@dataclass(slots=True)
class Step:
    """One engine step: from the start of its scheduling to the end of its bookkeeping."""

    start_s: float
    end_s: float
    num_decodes: int
    context_sum: int
    chunks: list[tuple[int, int]] = field(default_factory=list)
    forward_s: float = -1.0  # of it in the model's forward pass and the read-back of tokens; -1: not known

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s


@dataclass(slots=True)
class Load:
    load: str
    rate: float  # requests/s offered
    requests: list[Served]
    steps: list[Step]
    yardstick_s: list[float] = field(default_factory=list)
    round: int = 0  # the same requests again, later


@dataclass(slots=True)
class Run:
    device: dict[str, Any]
    versions: dict[str, Any]
    engine: dict[str, Any]
    model: dict[str, Any]
    dtype: str
    seed: int
    clock: str
    date: str
    probe: list[Step]
    loads: list[Load]


def write(run: Run, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".part")
    rounded = json.loads(json.dumps({"schema": SCHEMA, **asdict(run)}), parse_float=lambda x: round(float(x), 6))
    half.write_text(json.dumps(rounded, separators=(",", ":"), allow_nan=False) + "\n", encoding="utf-8")
    half.replace(path)


def read(path: Path) -> Run:
    """Plain or gzipped. Raises ValueError on what is no such file."""
    data = json.loads(text_of(path))
    if not isinstance(data, dict) or data.get("schema") != SCHEMA or "loads" not in data:
        raise ValueError(f"{path} holds no served requests (schema {SCHEMA} expected)")
    data.pop("schema")
    data["probe"] = [_step(s) for s in data["probe"]]
    data["loads"] = [
        Load(
            x["load"],
            x["rate"],
            [Served(**r) for r in x["requests"]],
            [_step(s) for s in x["steps"]],
            x["yardstick_s"],
            x["round"],
        )
        for x in data["loads"]
    ]
    return Run(**data)


def _step(row: dict[str, Any]) -> Step:
    return Step(**{**row, "chunks": [(int(a), int(b)) for a, b in row["chunks"]]})
