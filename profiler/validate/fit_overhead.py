"""Fits the seconds of engine-overhead presets: ``python -m profiler.validate.fit_overhead MEASURED``.

Each preset has few parameters, each with a meaning and a physically possible range; they are fitted together, by
bounded least squares on log(predicted / measured), to the measurements that ``training`` declares, and to nothing else.
Parameters a preset's data cannot tell apart stay at the values of the preset it builds on.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import OptimizeResult, least_squares

from profiler.validate import closed_loop, phases, rates, steps
from profiler.validate.kinds import Compare
from profiler.validate.served import Options
from simulator.cost.defaults import PRESETS_FILE, overhead_presets
from simulator.report.files import atomic_json

# Seconds: (lowest, highest, start). Nothing outside is believed: a step starts with a dozen small kernels and copies of
# its inputs and ends with one of its tokens, 0.1 ms at the least.
RANGES: Mapping[str, tuple[float, float, float]] = {
    "gpu_gap_s": (1.0e-4, 1.0e-3, 2.0e-4),
    "cpu_step_s": (1.0e-4, 6.0e-3, 7.0e-4),
    "cpu_per_sequence_s": (0.0, 3.0e-5, 6.0e-6),
    "launch_s": (2.0e-6, 6.0e-5, 3.0e-5),
    "api_request_s": (0.0, 2.0e-2, 3.0e-3),
    "api_token_s": (0.0, 5.0e-6, 1.0e-6),
}

PRIOR = 0.01  # weight of staying at the start, over a parameter's whole range
STEP = [0.02]  # of differentiation: large, as the simulation is only piecewise smooth in its parameters


@dataclass(frozen=True)
class Job:
    """One preset: which files, and which parameters they tell."""

    preset: str
    data: Sequence[tuple[Compare, str]]
    free: Sequence[str]
    about: str
    metrics: Sequence[str] = ("ttft", "tpot", "period", "prefill", "decode_per_token")
    fixed: Mapping[str, float] = field(default_factory=dict)


JOBS = (
    Job(
        "vllm-0.10",
        [(closed_loop.compare, "inferencex/closed_loop.csv:meta-llama/Llama-3.1-70B")],
        ("cpu_step_s", "launch_s", "api_request_s", "api_token_s"),
        "InferenceX Llama-3.1-70B FP8, H100, TP4, 4 and 8 concurrent requests",
    ),
    Job(
        "vllm-0.11",
        [(phases.compare, "vllm_phases/F_phases_dec11-train-qwen3b-1.csv")],
        ("gpu_gap_s", "cpu_step_s", "launch_s"),
        "vllm_phases, Qwen2.5-3B (version assumed)",
    ),
    Job(
        "vllm-0.15",
        [
            (steps.compare, "vllm_steps/20260217-203421-llama-2-70b-hf-tp4-codegen.csv.gz"),
            (rates.compare, "vllm_rates/h100_llama2.csv"),
            (closed_loop.compare, "inferencex/closed_loop.csv:openai/gpt-oss-120b"),
        ],
        ("gpu_gap_s", "api_request_s", "api_token_s"),
        "Llama-2 7B and 70B codegen, H100: steps, TTFT, TPOT; InferenceX gpt-oss-120b, H200, TP2, 4 and 8 users",
    ),
)


def residuals(job: Job, folder: Path, values: np.ndarray, calibration: str) -> np.ndarray:
    """log(predicted / measured), each file and metric with equal weight."""
    seconds = (*job.fixed.items(), *zip(job.free, values.tolist(), strict=True))
    options = Options(calibration=calibration, only_training=True, seconds=seconds)
    found = []
    for compare, name in job.data:
        path, _, model = name.partition(":")
        own = [r for r in compare(folder / path, options).residuals if not model or r.model == model]
        for metric in job.metrics:
            errors = np.array([math.log(r.predicted / r.measured) for r in own if r.metric == metric])
            if len(errors):
                found.append(errors / math.sqrt(len(errors)))
    return np.concatenate(found)


def fit(job: Job, folder: Path, calibration: str) -> tuple[dict[str, float], float, float]:
    """(seconds, rms error at the start, rms error at the end). Deterministic."""
    low, high, start = (np.array([RANGES[name][i] for name in job.free]) for i in range(3))

    x0 = 1.0 + (start - low) / (high - low)  # from 1 to 2: steps of differentiation are relative

    def scaled(x: np.ndarray) -> np.ndarray:
        # What the data do not tell stays where it starts.
        missed = residuals(job, folder, low + (x - 1.0) * (high - low), calibration)
        return np.concatenate([missed, PRIOR * (x - x0)])

    found = min((_solve(scaled, start) for start in _starts(job, x0)), key=lambda solved: float(solved.cost))
    values = {
        name: round(float(f"{v:.3g}"), 9)
        for name, v in zip(job.free, low + (found.x - 1.0) * (high - low), strict=True)
    }
    rms = [math.sqrt(float(np.sum(scaled(x)[: -len(x)] ** 2)) / len(job.metrics)) for x in (x0, found.x)]
    return values, rms[0], rms[1]


def _starts(job: Job, x0: np.ndarray) -> list[np.ndarray]:
    """Launching binds only where it is slower than the GPU: started fast alone, it might never be seen."""
    if "launch_s" not in job.free:
        return [x0]
    fast = x0.copy()
    fast[list(job.free).index("launch_s")] = 1.1
    return [x0, fast]


def _solve(function: Callable[[np.ndarray], np.ndarray], x0: np.ndarray) -> OptimizeResult:
    return least_squares(function, x0, bounds=(1.0, 2.0), diff_step=STEP, loss="soft_l1", f_scale=0.05, max_nfev=20)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measured", type=Path, help="folder with inferencex/, vllm_steps/, ...")
    parser.add_argument("--calibration", default="auto")
    parser.add_argument("--out", type=Path, default=PRESETS_FILE)
    parser.add_argument("presets", nargs="*", help="presets to fit; all by default")
    given = parser.parse_args(arguments)
    presets: dict[str, dict[str, Any]] = {name: dict(row) for name, row in overhead_presets().items()}
    for job in JOBS:
        if given.presets and job.preset not in given.presets:
            continue
        values, before, after = fit(job, given.measured, given.calibration)
        start = {name: limits[2] for name, limits in RANGES.items() if not name.startswith("api_")}
        quiet = {"api_request_s": 0.0, "api_token_s": 0.0}
        source = f"fitted by profiler.validate.fit_overhead on {job.about}"
        fitted = sorted(values)
        kept = {"full_graphs": False} if job.preset == "vllm-0.10" else {}
        presets[job.preset] = {**kept, **quiet, **start, **job.fixed, **values, "fitted": fitted, "source": source}
        print(f"{job.preset}: rms {before:.3f} -> {after:.3f}", values, flush=True)  # noqa: T201 - a command
    presets["vllm"] = {**presets["vllm-0.15"], "source": f"as vllm-0.15: {presets['vllm-0.15']['source']}"}
    ordered = {name: presets[name] for name in sorted(presets)}
    atomic_json(given.out, {"written_by": "python -m profiler.validate.fit_overhead", "presets": ordered})


if __name__ == "__main__":
    main()
