"""Which measurements engine overhead was fitted on (``fit_overhead``); everything else is held out.

Declared once, here; docs/validation.md lists it. The rules name published rows, so that other data is always held out.
"""

from __future__ import annotations

from collections.abc import Mapping

CLOSED_LOOP = {  # (model, system, tensor-parallel size, measured): few requests at once, where overhead shows most
    ("meta-llama/Llama-3.1-70B", "h100_sxm", 4, "2025-10-29"),
    ("openai/gpt-oss-120b", "h200_sxm", 2, "2026-03-27"),
}
LOW_CONCURRENCY = 8
STEPS = ("20260217-203421-llama-2-70b-hf-tp4-codegen",)
RATES = ("20260217-203421-llama-2-70b-hf-tp4-codegen", "20260217-155451-llama-2-7b-tp1-codegen")
PHASES = ("F_phases_dec11-train-qwen3b-1",)


def part(kind: str, row: Mapping[str, str]) -> str:
    """``train`` or ``test``."""
    return "train" if is_training(kind, row) else "test"


def is_training(kind: str, row: Mapping[str, str]) -> bool:
    """``row``: of a table; or, where a whole file is one run, its name under ``file``."""
    if kind == "closed_loop":
        key = (row["model_path"], row["system"], int(float(row["tp_size"])), row.get("measured_date"))
        return key in CLOSED_LOOP and float(row["conc"]) <= LOW_CONCURRENCY
    if kind == "rates":
        return row["exp"] in RATES
    return row.get("file", "").split(".")[0] in {"steps": STEPS, "phases": PHASES}.get(kind, ())
