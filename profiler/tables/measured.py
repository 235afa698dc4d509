"""Measurements of this project's own profiler: JSON Lines, as ``schema.md`` describes them."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pandas as pd

from profiler.tables.columns import SHAPES, Tables, medians
from simulator.core.errors import CalibrationError

ROUTING = {"balanced": 0.0, "uniform": 0.0, "skewed": 1.01}


def read(path: Path) -> Tables:
    """One campaign. A last line without its end is an interrupted write and dropped. Raises CalibrationError."""
    tables = Tables()
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    header: dict[str, Any] = {}
    text = path.read_text(encoding="utf-8")
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
        frame = frame if operator == "ceiling" else medians(frame, [*SHAPES[operator], "dtype"])
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
    )  # fmt: skip
    return tables


def _point(row: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """(operator, columns) of a line; no operator: nothing that a law takes."""
    op = row["op"]
    common = {"dtype": row["dtype"], "seconds": row["median_s"], "kernel": row["backend"], "source": "measured"}
    if op == "ceiling":
        return op, {**common, "quantity": row["quantity"], "value": float(row["value"])}
    if op == "gemm":
        return op, {**common, "m": row["m"], "n": row["n"], "k": row["k"]}
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
