"""Writes the measured part of docs/validation.md: ``python -m profiler.validate.document DATA`` (``make validation``).

DATA is the folder that holds ``measured/`` and ``kernels/``. What is between the markers of the page, and the chart
beside it, come from one run of ``validate``; the words around them are by hand.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from profiler.validate.pictures import overview_png
from profiler.validate.residuals import Metric
from profiler.validate.run import metrics, validate
from profiler.validate.served import Options
from simulator.cost.calibration import HeldOut, read_calibration, shipped
from simulator.hardware.gpu import gpu
from simulator.report.files import atomic_write

DOCS = Path(__file__).resolve().parents[2] / "docs"
BEGIN, END = "<!-- measured: begin (generated) -->", "<!-- measured: end -->"
# (what, metric, its held-out part, other tools on the same data)
ROWS: Sequence[tuple[str, str, str, str]] = (
    ("InferenceX closed loop, TTFT, mean absolute error", "closed_loop.ttft.mape", "closed_loop.ttft.mape.held_out",
     "aiconfigurator 38.6 %, AISimulate 31.5 %"),
    ("InferenceX closed loop, TPOT, mean absolute error", "closed_loop.tpot.mape", "closed_loop.tpot.mape.held_out",
     "aiconfigurator 5.7 %, AISimulate 7.6 %"),
    ("RTX PRO 6000 requests, mean TTFT", "requests.ttft.mean.error", "=", "LLMServingSim -4.0 %"),
    ("RTX PRO 6000 requests, mean TPOT", "requests.tpot.mean.error", "=", "LLMServingSim -1.0 %"),
    ("RTX PRO 6000 requests, mean E2E", "requests.e2e.mean.error", "=", "LLMServingSim -1.8 %"),
    ("RTX PRO 6000 requests, P99 TTFT", "requests.ttft.p99.error", "=", "LLMServingSim -2.0 %"),
    ("RTX PRO 6000 requests, P99 TPOT", "requests.tpot.p99.error", "=", "LLMServingSim +0.6 %"),
    ("RTX PRO 6000 requests, P99 E2E", "requests.e2e.p99.error", "=", "LLMServingSim -1.6 %"),
    ("Engine steps, step time, median absolute error", "steps.period.median", "steps.period.median.held_out", "-"),
    ("Phases, prefill time, mean absolute error", "phases.prefill.mape", "phases.prefill.mape.held_out",
     "BLIS 8.8 times off"),
    ("Phases, decode time per token, mean absolute error", "phases.decode_per_token.mape",
     "phases.decode_per_token.mape.held_out", "-"),
    ("Fixed rates, TTFT, mean absolute error", "rates.ttft.mape", "rates.ttft.mape.held_out", "-"),
    ("Fixed rates, TPOT, mean absolute error", "rates.tpot.mape", "rates.tpot.mape.held_out", "-"),
)  # fmt: skip


def table(found: Mapping[str, Metric]) -> list[str]:
    """Lines of Markdown: what was measured, the error, that of the held-out part, other tools, the bar."""
    lines = ["| measured | error | held out | other tools | bar |", "|---|---:|---:|---|---:|"]
    for what, name, held, others in ROWS:
        metric = found.get(name)
        if metric is None:
            lines.append(f"| {what} | not run | | {others} | |")
            continue
        sign = "+" if name.endswith(".error") else ""
        own = f"{metric.value:{sign}.1f} %"
        apart = own if held == "=" else f"{found[held].value:.1f} %" if held in found else "-"
        bar = "-" if metric.bar is None else f"{metric.bar:g} %{'' if metric.met else ' (missed)'}"
        lines.append(f"| {what} | {own} | {apart} | {others} | {bar} |")
    return lines


HOPPER = ("H100-SXM", "H200-SXM")
GEMM_BAR, HOPPER_BAR, OTHER_BAR = 0.03, 0.05, 0.07


def kernel_lines() -> list[str]:
    """What the shipped calibrations say of themselves, on whole shapes left out of their fits. GPUs alone."""
    errors = {name: read_calibration(path).errors() for name, path in shipped().items() if gpu(name).vendor != "any"}
    gemm = [errors[name]["gemm bf16"].mean for name in HOPPER]
    missed = "" if max(gemm) <= GEMM_BAR else " (missed)"
    own = " / ".join(f"{100 * error:.1f} %" for error in gemm)
    others = "aiconfigurator's interpolation 3.6-4.9 %"
    return [
        f"| Kernel tables, GEMM bf16 on H100 / H200, mean absolute error | {own} | {own} | {others} | 3 %{missed} |",
        _within([errors[name] for name in HOPPER], "H100 and H200", HOPPER_BAR),
        _within([found for name, found in errors.items() if name not in HOPPER], "the other six GPUs", OTHER_BAR),
    ]


def _within(errors: Sequence[Mapping[str, HeldOut]], where: str, bar: float) -> str:
    """How many fits (an operator in a format) hold the bar."""
    every = [(error.mean, label) for found in errors for label, error in found.items()]
    good = sum(mean <= bar for mean, _ in every)
    worst, label = max(every)
    own = f"{good} of {len(every)} fits within {100 * bar:g} %; worst: {label} {100 * worst:.1f} %"
    missed = "" if good == len(every) else " (missed)"
    return f"| Kernel tables, every operator and format on {where} | {own} | = | - | {100 * bar:g} % each{missed} |"


def replace_between(text: str, lines: Sequence[str]) -> str:
    """The page with new lines between its markers."""
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    return "\n".join([before + BEGIN, *lines, END]) + after


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--calibration", default="auto")
    given = parser.parse_args(arguments)
    found = validate([given.data / "measured"], Options(given.calibration))
    page = DOCS / "validation.md"
    lines = table({m.name: m for m in metrics(found)}) + kernel_lines()
    atomic_write(page, replace_between(page.read_text(encoding="utf-8"), lines))
    atomic_write(DOCS / "validation.png", overview_png([r for c in found for r in c.residuals]))
    print("\n".join(lines))  # noqa: T201 - a command


if __name__ == "__main__":
    main()
