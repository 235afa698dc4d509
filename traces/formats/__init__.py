"""Readers of public trace formats. ``read_trace`` finds out which one a file has, where that is unambiguous.

Adding a format: one file with a ``FORMAT``, and its line here.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from simulator.core.errors import TraceError
from simulator.core.names import suggestion
from traces.formats import (
    azure,
    bailian,
    burstgpt,
    mooncake,
    ragpulse,
    servegen,
    sharegpt,
    table,
    timed_trace,
    vidur,
    weka,
)
from traces.formats.base import Format, Source, open_source, sample_of
from traces.trace import Trace

FORMATS: dict[str, Format] = {
    module.FORMAT.name: module.FORMAT
    for module in (
        azure,
        bailian,
        burstgpt,
        mooncake,
        ragpulse,
        servegen,
        sharegpt,
        table,
        timed_trace,
        vidur,
        weka,
    )
}


def read_trace(path: str | Path, format: str | None = None, *, strict: bool = False, **options: Any) -> Trace:  # noqa: A002
    """Read a trace file, gzipped or not.

    format: a name in ``FORMATS``; None looks at the content. strict: the first bad row raises instead of being skipped
    and noted. options: the format's own, see its ``read``. Raises TraceError naming file, line, column and value.
    """
    if format is not None and format not in FORMATS:
        raise TraceError(f"unknown trace format {format!r}", remedy=suggestion(format, FORMATS, noun="trace formats"))
    source = open_source(path, strict=strict)
    chosen = FORMATS[format] if format is not None else detect(source)
    _check_options(chosen, options)
    return chosen.read(source, **options)


def detect(source: Source) -> Format:
    """The one format the content fits. Raises TraceError listing the formats when none or several do."""
    if not source.data.strip():
        raise source.error("is empty")
    sample = sample_of(source)
    found = [f for f in FORMATS.values() if f.matches(sample)]
    if len(found) == 1:
        return found[0]
    listed = "\n".join(f"    {f.name}: {f.summary}" for f in FORMATS.values())
    what = f"fits several formats ({', '.join(f.name for f in found)})" if found else "fits no known format"
    others = "Other tables: name their columns arrival, prompt_tokens, output_tokens."
    raise source.error(what, remedy=f"Name the format. Known ones:\n{listed}\n  {others}")


def options_of(chosen: Format) -> list[str]:
    """Names of a format's own options."""
    return [name for name in inspect.signature(chosen.read).parameters if name != "source"]


def _check_options(chosen: Format, options: dict[str, Any]) -> None:
    known = inspect.signature(chosen.read).parameters
    for name, value in options.items():
        if name not in options_of(chosen):
            raise TraceError(
                f"format {chosen.name!r} has no option {name!r}",
                remedy=suggestion(name, options_of(chosen), noun=f"options of {chosen.name}"),
            )
        wanted = str(known[name].annotation)
        if type(value) in _PLAIN and (
            wanted.startswith("Mapping") or not any(k in wanted for k in _PLAIN[type(value)])
        ):
            raise TraceError(f"option {name} of format {chosen.name!r} is {wanted}, not {value!r}")


# Words of an option's annotation that a plain value fits.
_PLAIN: dict[type, tuple[str, ...]] = {bool: ("bool",), int: ("int", "float"), float: ("float",), str: ("str",)}

__all__ = ["FORMATS", "Format", "detect", "options_of", "read_trace"]
