"""Measurements of this project's own profiler: JSON Lines, plain or gzipped, as ``schema.md`` describes them.

A shape counts once: the median over rounds of each kernel, then the fastest kernel, as an engine would choose.
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pandas as pd

from profiler.tables.columns import SHAPES, Tables, fastest, medians
from simulator.core.errors import CalibrationError

ROUTING = {"balanced": 0.0, "uniform": 0.0, "skewed": 1.01}


def read(path: Path) -> Tables:
    """One campaign. A last line without its end is an interrupted write and dropped. Raises CalibrationError."""
    tables = Tables()
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    header: dict[str, Any] = {}
    text = _text(path)
    lines = text.split("\n")[:-1]
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            kind = row["kind"]
            if kind == "header":
                header = row
            elif kind == "point":
                operator, found = _point(row)
                if operator is not None:
                    rows[operator].append(found)
        except (ValueError, KeyError, TypeError) as error:
            raise CalibrationError(f"bad measurement: {error!r}", where=f"{path}, line {number}") from error
    for operator, points in sorted(rows.items()):
        frame = pd.DataFrame(points)
        if operator != "ceiling":
            shape = [*SHAPES[operator], "dtype"]
            frame = fastest(medians(frame, [*shape, "kernel"]), shape)
        tables.add(operator, frame, path)
    device = header.get("device", {})
    versions = header.get("versions", {})
    tables.provenance.append(
        {
            "source": "windtunnel profile", "licence": "Apache-2.0", "table": str(header.get("campaign", path.stem)),
            "device": str(device.get("name", "unknown")), "engine": f"torch {versions.get('torch', '?')}",
            "driver": str(device.get("driver", "unknown")), "date": str(header.get("date", "unknown")),
            "multiprocessors": str(device.get("multiprocessors", device.get("threads", 1))),
        }
        | _of_a_cpu(device, header)
    )  # fmt: skip
    return tables


def _of_a_cpu(device: dict[str, Any], header: dict[str, Any]) -> dict[str, str]:
    """What tells apart measurements of a core: its instructions, and whether time others took was left out."""
    if device.get("type") != "cpu":
        return {}
    clock = {"cpu": "CPU seconds of one thread", "wall": "wall time"}.get(str(header.get("clock")), "unknown")
    cores = f"{device.get('threads')} of {device.get('cores')} cores, {device.get('capability')}"
    return {"cpu": cores, "clock": clock}


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    except (OSError, EOFError, ValueError) as error:
        raise CalibrationError(f"not readable: {error}", where=str(path)) from error


def _point(row: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """(operator, columns) of a line; no operator: nothing that a law takes."""
    op = row["op"]
    common = {"dtype": row["dtype"], "seconds": row["median_s"], "kernel": row["backend"], "source": "measured"}
    if op == "ceiling":
        return op, {**common, "quantity": row["quantity"], "value": float(row["value"])}
    if op == "gemm":
        return op, {**common, "m": row["m"], "n": row["n"], "k": row["k"]}
    if row.get("spread", "equal") != "equal":
        return None, {}  # laws price equal contexts
    if op in ("prefill_attention", "decode_attention"):
        heads = {c: row[c] for c in ("batch", "heads", "kv_heads", "head_dim", "kv_dtype")}
        heads["window"] = row.get("window") or 0
        if op == "decode_attention":
            return op, {**common, **heads, "context": row["context_sum"] / row["batch"]}
        return op, {**common, **heads, "new": row["new_tokens"], "computed": row["computed_tokens"]}
    if op == "moe":
        return "experts", {
            **common, "tokens": row["tokens"], "rows": row["tokens"] * row["top_k"], "hidden": row["hidden"],
            "inter": row["inter"], "top_k": row["top_k"], "experts": row["experts"], "gated": row["gated"],
            "routing": ROUTING[row["routing"]],
        }  # fmt: skip
    if op == "elementwise":
        return op, {**common, "bytes": row["bytes"], "kernels": row["kernels"], "name": row["kernel"]}
    if op in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all"):
        return op, {**common, "ranks": row["ranks"], "size_bytes": row["size_bytes"]}
    return None, {}
