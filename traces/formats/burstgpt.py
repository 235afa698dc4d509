"""BurstGPT: ``Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type`` (seconds from the first day).

Source: github.com/HPMLL/BurstGPT (CC-BY-4.0), arXiv:2401.17644. ``Model`` becomes the model, ``Log Type`` (conversation
or API) the service class. Rows with no response tokens are failed requests and are skipped with a note.
"""

from __future__ import annotations

from traces.formats.base import Format, Sample, Source, read_csv
from traces.trace import Trace


def read(source: Source) -> Trace:
    rows = read_csv(source, ("Timestamp", "Request tokens", "Response tokens"), ("Model", "Log Type", "Session ID"))
    session = rows.labels("Session ID")
    return rows.build(
        arrival=rows.floats("Timestamp", low=0),
        prompt_tokens=rows.tokens("Request tokens"),
        output_tokens=rows.tokens("Response tokens"),
        session=session.codes if session is not None else None,
        model=rows.labels("Model"),
        slo_class=rows.labels("Log Type"),
    )


def _matches(sample: Sample) -> bool:
    return {"timestamp", "request tokens", "response tokens"} <= {name.lower() for name in sample.header}


FORMAT = Format("burstgpt", "BurstGPT CSV (Timestamp, Model, Request tokens, Response tokens, ...)", read, _matches)
