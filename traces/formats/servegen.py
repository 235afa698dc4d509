"""ServeGen client mixes: per client and 600-s window a rate and the shape of its gaps; per 6 h the lengths' quantiles.

Source: github.com/alibaba/ServeGen (Apache-2.0), arXiv:2505.09999, as one ``<model>-trace.csv``
(``client,t,rate,cv,pat,shape,scale``) and one ``<model>-quantiles.jsonl`` beside it. These are parameters, not
requests: reading them draws a trace. In each window a client has ``rate * 600`` requests with the given gap
distribution, scaled to fill the window. Clients without published lengths draw from all the others' (noted).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from traces.formats.base import Format, Sample, Source, open_source, read_csv, read_jsonl
from traces.trace import Floats, Ints, Labels, Trace

WINDOW_S = 600.0
LENGTH_FIELDS = ("input_tokens", "output_tokens")


@dataclass(frozen=True, slots=True)
class LengthTable:
    """Quantiles of one field: ``values[i]`` on the grid ``q`` for ``client[i]`` from ``start_s[i]`` on."""

    q: Floats
    client: Ints
    start_s: Floats
    requests: Floats
    values: dict[str, NDArray[np.float64]]  # field -> (windows, len(q))


@dataclass(frozen=True, slots=True)
class Mix:
    """A model's clients: one row per client and active 600-s window."""

    client: Ints
    start_s: Floats
    rate: Floats  # requests/s
    cv: Floats
    weibull: NDArray[np.bool_]  # else gamma
    shape: Floats
    lengths: LengthTable
    duration: float  # s covered, inactive windows included
    notes: tuple[str, ...] = ()

    def requests_per_client(self) -> dict[int, float]:
        return {int(c): float(self.rate[self.client == c].sum() * WINDOW_S) for c in np.unique(self.client)}

    def hourly(self, members: Iterable[int]) -> Floats:
        """Mean rate in each hour of the day, relative to the members' overall mean."""
        rows = np.isin(self.client, list(members))
        hour = (self.start_s[rows] // 3600 % 24).astype(np.int64)
        rate = np.bincount(hour, self.rate[rows], minlength=24)
        return np.asarray(rate / rate.mean(), dtype=np.float64)

    def burstiness(self, members: Iterable[int]) -> float:
        """VLLM's burstiness ``1 / CV^2`` at the members' median CV, weighted by requests."""
        rows = np.isin(self.client, list(members))
        order = np.argsort(self.cv[rows])
        mass = np.cumsum(self.rate[rows][order])
        cv = self.cv[rows][order][np.searchsorted(mass, mass[-1] / 2)]
        return float(min(max(cv**-2, 1e-3), 1e3))

    def length_windows(self, field: str, members: Iterable[int]) -> tuple[Floats, NDArray[np.float64], Floats]:
        """Grid, quantiles and requests of the members' windows; of everybody's where they have none."""
        rows = np.isin(self.lengths.client, list(members))
        rows = rows if rows.any() else np.ones(len(rows), dtype=bool)
        return self.lengths.q, self.lengths.values[field][rows], self.lengths.requests[rows]


def read(
    source: Source, *, start_s: float = 0.0, duration_s: float = 600.0, rate: float | None = None, seed: int = 0
) -> Trace:
    """Draw the requests of [start_s, start_s + duration_s); ``rate`` scales all clients to that many requests/s."""
    mix = read_mix(source.path, strict=source.strict)
    if duration_s <= 0 or start_s < 0:
        raise source.error(f"need start_s >= 0 and duration_s > 0, not {start_s} and {duration_s}")
    rng = np.random.default_rng(seed)
    rows = np.flatnonzero((mix.start_s + WINDOW_S > start_s) & (mix.start_s < start_s + duration_s))
    if len(rows) == 0:
        raise source.error(f"no client is active in [{start_s:g}, {start_s + duration_s:g}) s of {mix.duration:g} s")
    overlap = np.minimum(mix.start_s[rows] + WINDOW_S, start_s + duration_s) - np.maximum(mix.start_s[rows], start_s)
    factor = 1.0 if rate is None else rate * duration_s / float((mix.rate[rows] * overlap).sum())
    times = [_window_times(mix, int(row), factor, rng) for row in rows]
    where = np.repeat(rows, [len(t) for t in times])
    arrival = np.concatenate(times) - start_s
    inside = np.flatnonzero((arrival >= 0) & (arrival < duration_s))
    order = inside[np.argsort(arrival[inside], kind="stable")]
    if len(order) == 0:
        raise source.error("no request falls into the window", remedy="Give a longer duration_s or a higher rate.")
    prompt, output, borrowed = _sample_lengths(mix, mix.client[where[order]], mix.start_s[where[order]], rng)
    names, codes = np.unique(mix.client[where[order]], return_inverse=True)
    notes = mix.notes
    if borrowed:
        notes = (
            *notes,
            f"{borrowed} of {len(order)} requests are of clients without published lengths: pooled ones used",
        )
    return Trace(
        arrival=arrival[order],
        prompt_tokens=prompt,
        output_tokens=output,
        tenant=Labels(codes.astype(np.int32), tuple(f"client-{c}" for c in names)),
        source=source.name,
        notes=notes,
    )


def _window_times(mix: Mix, row: int, factor: float, rng: np.random.Generator) -> Floats:
    expected = mix.rate[row] * WINDOW_S * factor
    n = int(expected) + int(rng.random() < expected % 1)
    gaps = rng.weibull(mix.shape[row], n + 1) if mix.weibull[row] else rng.gamma(mix.shape[row], 1.0, n + 1)
    total = gaps.sum()
    spread = np.cumsum(gaps)[:n] / total if total > 0 else np.sort(rng.random(n))
    return np.asarray(mix.start_s[row] + WINDOW_S * spread, dtype=np.float64)


def _sample_lengths(mix: Mix, client: Ints, start_s: Floats, rng: np.random.Generator) -> tuple[Ints, Ints, int]:
    """Each request draws from its client's length window at its time, else the nearest one, else from any client's."""
    table = mix.lengths
    prompt, output = np.ones(len(client), dtype=np.int64), np.ones(len(client), dtype=np.int64)
    borrowed = 0
    for c in np.unique(client):
        mine = np.flatnonzero(client == c)
        own = np.flatnonzero(table.client == c)
        if len(own):
            middle = table.start_s[own] + 10_800.0
            window = own[np.abs(start_s[mine][:, None] - middle[None, :]).argmin(axis=1)]
        else:
            borrowed += len(mine)
            window = rng.choice(len(table.client), len(mine), p=table.requests / table.requests.sum())
        for w in np.unique(window):
            at = mine[window == w]
            for target, name in ((prompt, "input_tokens"), (output, "output_tokens")):
                drawn = np.interp(rng.random(len(at)), table.q, table.values[name][w])
                target[at] = np.maximum(np.rint(drawn), 1).astype(np.int64)
    return prompt, output, borrowed


def read_mix(trace_path: Path, quantiles_path: Path | None = None, *, strict: bool = False) -> Mix:
    """Both files of a model; the second is found beside the first. Raises TraceError with file, line, column, value."""
    trace_path = Path(trace_path)
    source = open_source(trace_path, strict=strict)
    if quantiles_path is None:
        stem = trace_path.name.split("-trace.csv")[0]
        found = sorted(trace_path.parent.glob(f"{stem}-quantiles.jsonl*"))
        if not found:
            raise source.error(f"needs {stem}-quantiles.jsonl beside it for the lengths")
        quantiles_path = found[0]
    rows = read_csv(source, ("client", "t", "rate", "cv", "pat", "shape"))
    client, start = rows.whole("client", low=0), rows.floats("t", low=0)
    rate, cv, shape = rows.floats("rate", low=0), rows.floats("cv", low=0), rows.floats("shape", low=0)
    pattern = np.array([(text or "").lower() for text in rows.text("pat")], dtype=object)
    active = (rate > 0) & rows.ok
    rows.refuse("pat", active & ~np.isin(pattern, ["gamma", "weibull"]), "is neither Gamma nor Weibull")
    rows.refuse("shape", active & (shape <= 0), "must be > 0")
    active &= rows.ok
    if not active.any():
        raise source.error("has no active window")
    return Mix(
        client=client[active], start_s=start[active], rate=rate[active], cv=cv[active],
        weibull=pattern[active] == "weibull", shape=shape[active],
        lengths=_read_lengths(quantiles_path, strict=strict),
        duration=float(start[rows.ok].max() + WINDOW_S), notes=rows.notes(),
    )  # fmt: skip


def _read_lengths(path: Path, *, strict: bool) -> LengthTable:
    source = open_source(path, strict=strict)
    head, _, rest = source.data.lstrip().partition(b"\n")
    grid = read_jsonl(Source(source.path, head, strict), ("q",))
    q = np.array(grid.columns["q"][0] if len(grid) else [], dtype=np.float64)
    if len(q) < 2 or (np.diff(q) <= 0).any():
        raise source.error('must begin with {"q": [...]}, a rising grid of probabilities', line=1)
    # A blank first line keeps the line numbers of the file.
    rows = read_jsonl(Source(source.path, b"\n" + rest, strict), ("client", "t", "req", *LENGTH_FIELDS))
    values: dict[str, Any] = {}
    for name in LENGTH_FIELDS:
        wrong = np.array([not _is_quantiles(v, len(q)) for v in rows.columns[name]], dtype=bool)
        rows.refuse(name, wrong, f"is not a list of {len(q)} numbers")
    client, start, requests = rows.whole("client"), rows.floats("t", low=0), rows.floats("req", low=0)
    keep = np.flatnonzero(rows.ok & (requests > 0))
    if len(keep) == 0:
        raise source.error("has no window with lengths")
    values = {name: np.array([rows.columns[name][i] for i in keep], dtype=np.float64) for name in LENGTH_FIELDS}
    return LengthTable(q, client[keep], start[keep], requests[keep], values)


def _is_quantiles(value: Any, size: int) -> bool:
    return isinstance(value, list) and len(value) == size and all(type(v) in (int, float) for v in value)


def _matches(sample: Sample) -> bool:
    return {"client", "t", "rate", "cv", "pat", "shape"} <= set(sample.header)


FORMAT = Format("servegen", "ServeGen client mix (client, t, rate, cv, pat, shape); draws the requests", read, _matches)
