"""Engine arguments vLLM chooses by GPU when the user gives none, and engine overheads by preset."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from simulator.core.errors import ScenarioError
from simulator.core.names import suggestion
from simulator.cost.overhead import EngineOverhead, capture_sizes
from simulator.hardware.gpu import GIB, Gpu
from simulator.model.architecture import Model


@dataclass(frozen=True, slots=True)
class BatchDefaults:
    max_num_batched_tokens: int
    max_num_seqs: int


def batch_defaults(gpu: Gpu, model: Model | None = None) -> BatchDefaults:
    """VLLM 0.33's API server: ``EngineArgs.get_batch_defaults``.

    At least 160 GiB: 16384 and 1024; at least 70 GiB and not an A100: 8192 and 1024; otherwise 2048 and 256. A model
    with very short contexts lowers the tokens to ``max_num_seqs x max_model_len``.
    """
    if gpu.memory_bytes >= 160 * GIB:
        tokens, seqs = 16384, 1024
    elif gpu.memory_bytes >= 70 * GIB and "a100" not in gpu.name.lower():
        tokens, seqs = 8192, 1024
    else:
        tokens, seqs = 2048, 256
    return BatchDefaults(min(tokens, seqs * model.max_model_len) if model else tokens, seqs)


PRESETS_FILE = Path(__file__).with_name("overheads.json")
NEWEST = "vllm"


@cache
def overhead_presets() -> Mapping[str, Mapping[str, Any]]:
    """Engine overheads by preset: seconds, and under ``source`` where they come from.

    Written by ``python -m profiler.validate.fit_overhead``; see docs/validation.md.
    """
    rows: dict[str, dict[str, Any]] = json.loads(PRESETS_FILE.read_text(encoding="utf-8"))["presets"]
    return rows


def overhead_of_version(version: str) -> str:
    """The preset of a vLLM release: the newest one that is not newer than the release, else the oldest."""
    known = sorted((_version(name), name) for name in overhead_presets() if name.startswith("vllm-"))
    asked = _version(version)
    not_newer = [name for number, name in known if number <= asked]
    return not_newer[-1] if not_newer else known[0][1]


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def engine_overhead(
    gpu: Gpu,
    *,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    async_scheduling: bool = True,
    enforce_eager: bool = False,
    preset: str = NEWEST,
    max_cudagraph_capture_size: int | None = None,
) -> EngineOverhead:
    """Overhead of an engine with these arguments: its CUDA-graph sizes follow from them and from the GPU.

    Raises ScenarioError for an unknown preset.
    """
    found = overhead_presets().get(preset)
    if found is None:
        remedy = suggestion(preset, overhead_presets(), noun="known presets")
        raise ScenarioError(f"unknown overhead preset {preset!r}", where="overhead", remedy=remedy)
    seconds = {name: float(value) for name, value in found.items() if name.endswith("_s")}
    ceiling = 1024 if int(gpu.compute_capability) == 10 else 512
    eager = enforce_eager or bool(found.get("eager", False))
    sizes = () if eager else capture_sizes(max_num_seqs, max_num_batched_tokens, ceiling, max_cudagraph_capture_size)
    return EngineOverhead(
        async_scheduling=async_scheduling,
        graph_sizes=sizes,
        full_graphs=bool(found.get("full_graphs", True)),
        source=f"{preset}: {found['source']}",
        **seconds,
    )
