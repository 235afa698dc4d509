"""The calibrations that ship: ``python -m profiler.fit.shipped DATA`` fits them from a folder of published tables.

DATA holds a folder per GPU as aiconfigurator publishes them, ``llmservingsim/`` and ``vidur/``. What this project
measured itself lies in docs/measured, and needs no DATA.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from profiler.fit.calibrate import calibrate, elementwise
from profiler.fit.command import ceilings_of, write
from profiler.tables.columns import Tables
from profiler.tables.read import read_tables
from simulator.cost.calibration import SHIPPED, read_calibration
from simulator.hardware.gpu import gpu as find_gpu


@dataclass(frozen=True)
class Recipe:
    """``extra``: (table, operators to take from it). ``stream_of``: the GPU its elementwise kernels were timed on."""

    gpu: str
    folder: str
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()
    stream_of: str | None = None


OWN = Path(__file__).resolve().parents[2] / "docs" / "measured"
ELEMENTWISE = ("elementwise",)
# LLMServingSim's attention is the only one timed over cached contexts, and with keys that the cache no longer holds.
SERVED = ("elementwise", "prefill_attention", "decode_attention", "gemm")
RECIPES = (
    Recipe("A100-SXM-80GB", "a100_sxm", (("vidur/a100-Meta-Llama-3-8B-mlp.csv.gz", ELEMENTWISE),)),
    Recipe("H100-SXM", "h100_sxm", (("vidur/h100-Llama-2-7b-hf-mlp.csv.gz", ELEMENTWISE),)),
    Recipe("H200-SXM", "h200_sxm", (("vidur/h100-Llama-2-7b-hf-mlp.csv.gz", ELEMENTWISE),), "H100-SXM"),
    Recipe("B200", "b200_sxm"),
    Recipe("B300", "b300_sxm"),
    Recipe("GB200", "gb200"),
    Recipe("L40S", "l40s"),
    Recipe("RTX-PRO-6000", "rtx_pro_6000_server", (("llmservingsim/RTXPRO6000-Llama-3.1-8B-tp1", SERVED),)),
    Recipe("Xeon-Emerald-Rapids-core", str(OWN / "cpu" / "measurements.jsonl.gz")),
)


def tables_of(recipe: Recipe, data: Path) -> Tables:
    tables = read_tables([data / recipe.folder])
    for path, operators in recipe.extra:
        other = read_tables([data / path])
        tables.merge(Tables({op: other.frames[op] for op in operators if op in other.frames}, other.provenance))
    return tables


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--gpu", action="append", help="this one alone; repeatable")
    parser.add_argument("--operator", action="append", help="fit it alone (or 'gemm fp8'), keep the others; repeatable")
    parser.add_argument("--out", type=Path, default=SHIPPED)
    given = parser.parse_args(arguments)
    for recipe in RECIPES:
        if given.gpu and recipe.gpu not in given.gpu:
            continue
        card = find_gpu(recipe.gpu)
        tables = tables_of(recipe, given.data)
        out = given.out / f"{card.name}.json"
        found = calibrate(
            tables, card.name, ceilings_of(card, tables),
            progress=lambda text: print(f"  {text}", flush=True),  # noqa: T201 - a command
            kept=read_calibration(out) if given.operator else None, only=given.operator or (),
        )  # fmt: skip
        if recipe.stream_of:
            lender = find_gpu(recipe.stream_of)
            stream = elementwise(tables.frames["elementwise"], ceilings_of(lender, Tables()))
            found = replace(found, stream=stream)
        write(found, out)
        print(f"{card.name}: {len(found.fits)} fits")  # noqa: T201 - a command


if __name__ == "__main__":
    main()
