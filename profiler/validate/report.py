"""The residual report: a page with pictures, the pictures as PNG, and every residual as CSV."""

from __future__ import annotations

import base64
import csv
import html
import io
from collections.abc import Sequence
from pathlib import Path

from profiler.validate.pictures import pictures
from profiler.validate.residuals import Comparison, Metric, Residual
from profiler.validate.run import metrics
from simulator.report.files import atomic_write

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2rem auto;padding:0 1rem;color:#1a1d21}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .8rem;border-bottom:1px solid #ddd;text-align:left}
td.n{text-align:right;font-variant-numeric:tabular-nums}.ok{color:#18794e}.miss{color:#c0362c}img{max-width:100%;height:auto}
.note{color:#555}
"""


def write_report(folder: Path, comparisons: Sequence[Comparison], *, title: str) -> dict[str, Path]:
    """Write ``residuals.csv``, ``metrics.csv``, ``*.png`` and ``validation.html``; returns them by name."""
    folder.mkdir(parents=True, exist_ok=True)
    residuals = [r for c in comparisons for r in c.residuals]
    written = {
        "residuals.csv": atomic_write(folder / "residuals.csv", _residual_rows(residuals)),
        "metrics.csv": atomic_write(folder / "metrics.csv", _metric_rows(metrics(comparisons))),
    }
    drawn = pictures(residuals)
    for name, png in drawn.items():
        written[name] = atomic_write(folder / name, png)
    written["validation.html"] = atomic_write(folder / "validation.html", _page(title, comparisons, drawn))
    return written


def _csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


def _residual_rows(residuals: Sequence[Residual]) -> str:
    header = ("kind", "case", "model", "gpu", "load", "part", "metric", "unit", "measured", "predicted", "error")
    rows = [
        (r.kind, r.case, r.model, r.gpu, f"{r.load:g}", r.part, r.metric, r.unit,
         f"{r.measured:.6g}", f"{r.predicted:.6g}", f"{r.error:.5f}")
        for r in residuals
    ]  # fmt: skip
    return _csv(header, rows)


def _metric_rows(metrics: Sequence[Metric]) -> str:
    return _csv(("metric", "value", "unit", "bar"), [(m.name, f"{m.value:.6g}", m.unit, m.bar or "") for m in metrics])


def _page(title: str, comparisons: Sequence[Comparison], drawn: dict[str, bytes]) -> str:
    parts = [f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{STYLE}</style>"]
    parts.append(f"<h1>{html.escape(title)}</h1>")
    parts.append("<p>Errors are predicted over measured. Nothing was tuned while this page was made.</p>")
    for name, png in drawn.items():
        encoded = base64.b64encode(png).decode()
        parts.append(f'<p><img alt="{html.escape(name)}" src="data:image/png;base64,{encoded}"></p>')
    lines = "".join(map(_line, metrics(comparisons)))
    parts.append(f"<h2>Metrics</h2><table><tr><th>metric<th>value<th>bar</tr>{lines}</table><h2>Notes</h2>")
    for comparison in comparisons:
        name = html.escape(f"{comparison.kind}: {comparison.path.name}: ")
        parts += [f'<p class="note">{name}{html.escape(note)}</p>' for note in comparison.notes]
    return "\n".join(parts)


def _line(m: Metric) -> str:
    bar = ("", "") if m.met is None else (f"{m.bar:g} {m.unit}", "ok" if m.met else "miss")
    value = f"{m.value:.4g} {html.escape(m.unit)}"
    return f'<tr><td>{html.escape(m.name)}<td class="n {bar[1]}">{value}<td class=n>{bar[0]}</tr>'
