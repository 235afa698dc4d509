"""What each KV tier is worth, as a page: the answer first, then where prompts were found and what that saved."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from markupsafe import Markup

from simulator import __version__
from simulator.planning.tier_worth import Worth
from simulator.report.files import atomic_write
from simulator.report.fleet import hits_bar
from simulator.report.page import pages
from simulator.report.svg import Series, line_chart, number


def write_page(found: Sequence[Worth], folder: Path, *, title: str, command: str) -> Path:
    """``tiers.html`` in a folder, which is made. found: of ``tier_worth``."""
    environment = pages(Path(__file__).parent)
    page = environment.get_template("tiers.html").render(
        title=title,
        version=__version__,
        command=command,
        sentences=[_sentence(before, row) for before, row in pairwise(found)],
        bars=[(_label(row), Markup(hits_bar(row.gpu_hit_share, row.hit_shares))) for row in found],  # noqa: S704  svg.py escapes
        ttft=Markup(_ttft(found)),  # noqa: S704
        rows=[_row(row) for row in found],
    )
    folder.mkdir(parents=True, exist_ok=True)
    return atomic_write(folder / "tiers.html", page)


def _label(row: Worth) -> str:
    return "GPU memory alone" if not row.hit_shares else f"with {row.tiers}"


def _seconds(value: float) -> str:
    return f"{number(value)} s" if abs(value) >= 1 else f"{number(value * 1e3)} ms"


def _sentence(before: Worth, row: Worth) -> str:
    saved = before.mean_ttft_s - row.mean_ttft_s
    busy = before.busy_gpu_s - row.busy_gpu_s
    did = "takes" if saved >= 0 else "adds"
    way = "off" if saved >= 0 else "to"
    text = f"{number(row.capacity_gb)} GB of {row.tiers} {did} {_seconds(abs(saved))} {way} the mean TTFT"
    text += f" ({_seconds(before.mean_ttft_s)} before), and the GPUs compute {number(abs(busy))} s "
    text += f"{'less' if busy >= 0 else 'more'} ({number(abs(busy) / before.busy_gpu_s * 100)} %)"
    usd = row.usd_saved_per_gb_month
    if usd is not None and usd > 0:
        text += f": a GB is worth {number(usd)} USD of GPU time a month, at this load"
    return text + "."


def _ttft(found: Sequence[Worth]) -> str:
    size = np.cumsum([row.capacity_gb for row in found])
    mean, p90 = np.array([row.mean_ttft_s for row in found]), np.array([row.p90_ttft_s for row in found])
    names = ["", *(row.tiers for row in found[1:])]  # nothing needs no name: at 0 GB
    dots = tuple((float(x), float(y), name) for x, y, name in zip(size, mean, names, strict=True))
    return line_chart(
        [Series("mean", size, mean, 1), Series("p90", size, p90, 2)],
        x_label="GB of all tiers so far",
        y_label="TTFT, s",
        summary="Time to first token as tiers are added.",
        x_range=(0.0, 1.15 * float(size[-1])),
        dots=dots,
    )


def _row(row: Worth) -> list[str]:
    def of(value: float | None, unit: float = 1.0) -> str:
        return "" if value is None else number(value * unit)

    return [
        _label(row),
        of(row.capacity_gb) if row.hit_shares else "",
        f"{row.gpu_hit_share:.1%}",
        f"{row.tier_hit_share:.1%}" if row.hit_shares else "",
        of(row.read_gb) if row.hit_shares else "",
        of(row.written_gb) if row.hit_shares else "",
        _seconds(row.mean_ttft_s),
        _seconds(row.p90_ttft_s),
        _seconds(row.ttft_saved_s) if row.hit_shares else "",
        number(row.busy_gpu_s),
        of(row.ttft_saved_s_per_gb, 1e3),
        of(row.busy_gpu_s_saved_per_gb),
        of(row.usd_saved_per_gb_month),
    ]
