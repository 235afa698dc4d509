"""Fit the shipped presets to the real traces: ``python -m traces.generate.fit --data FOLDER [NAME ...]``.

FOLDER holds the public traces (azure-2023/, mooncake/, servegen/, lengths/); the YAML files go to ``presets/``. Only
parameters are written: quantiles, correlations, rate curves. Every file says what it was fitted to.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from traces.describe import prefix_hit_ratio
from traces.formats import read_trace
from traces.generate.distributions import LogNormal, Normal
from traces.generate.presets import FOLDER, generate_preset, preset_of
from traces.generate.synthesize import Generators
from traces.prefix import infinite_cache_hits
from traces.trace import Floats, Ints, Trace

Spec = dict[str, Any]

# Finer towards the ends: tails carry the means of these traces.
GRID = (
    0.0,
    0.001,
    0.01,
    0.025,
    0.05,
    *np.arange(0.1, 0.91, 0.05).round(2),
    0.925,
    0.95,
    0.97,
    0.98,
    0.99,
    0.995,
    0.999,
    1.0,
)
TAIL = (
    *np.arange(0.0, 0.91, 0.1).round(2),
    0.95,
    0.97,
    0.98,
    0.985,
    0.99,
    0.992,
    0.994,
    0.996,
    0.997,
    0.998,
    0.999,
    0.9995,
    1.0,
)


def quantiles(values: NDArray[Any], grid: Sequence[float] = GRID, *, digits: int = 0) -> Spec:
    """The empirical distribution on a grid; its largest value is lowered where the mean would come out too high."""
    q = np.asarray(grid)
    v = np.quantile(np.asarray(values, dtype=np.float64), q)
    v[-1] = min(v[-1], _end_value(q, v, float(np.mean(values))))
    rounded = np.maximum.accumulate(np.round(v, digits))
    number: Callable[[float], float] = int if digits == 0 else float
    return {"distribution": "quantiles", "q": [float(x) for x in q], "values": [number(x) for x in rounded]}


def _end_value(q: NDArray[Any], v: NDArray[Any], mean: float) -> float:
    """The largest value that keeps the piecewise-linear mean at ``mean``: a lone maximum would stretch the tail."""
    rest = float(np.trapezoid(v[:-1], q[:-1]))
    return max(float(v[-2]), 2 * (mean - rest) / float(q[-1] - q[-2]) - float(v[-2]))


def lengths(prompt: Ints, output: Ints) -> Spec:
    from scipy.stats import spearmanr

    rho = float(spearmanr(prompt, output).statistic)
    return {"prompt": quantiles(prompt), "output": quantiles(output), "correlation": round(rho, 3)}


def gamma_burstiness(gaps: Floats) -> float:
    """VLLM's burstiness of gaps with this coefficient of variation: ``1 / CV^2``."""
    return float((gaps.mean() / gaps.std()) ** 2)


def curve(arrival: Floats, bin_s: float, within: Spec) -> Spec:
    """Mean rate in bins, as a curve through their middles that closes on itself."""
    end = float(arrival[-1] - arrival[0])
    edges = np.linspace(0.0, end, max(round(end / bin_s), 1) + 1)
    rate = np.histogram(arrival - arrival[0], edges)[0] / np.diff(edges)
    ends = float(rate[[0, -1]].mean())
    times = [0.0, *((edges[1:] + edges[:-1]) / 2), end]
    return {
        "process": "rate_curve",
        "times_s": [round(float(t), 1) for t in times],
        "rates": [round(float(r), 4) for r in (ends, *rate, ends)],
        "within": within,
    }


def local_gaps(arrival: Floats, bin_s: float) -> Floats:
    """Gaps in operational time: each divided by the mean gap of its bin, which takes the slow changes out."""
    gaps = np.diff(arrival)
    which = ((arrival[1:] - arrival[0]) // bin_s).astype(np.int64)
    mean = np.bincount(which, gaps) / np.maximum(np.bincount(which), 1)
    return np.asarray(gaps / mean[which], dtype=np.float64)


def azure_conv(data: Path) -> Spec:
    trace = read_trace(data / "azure-2023/AzureLLMInferenceTrace_conv.csv.gz")
    within = {"process": "gamma", "rate": 1.0, "burstiness": round(gamma_burstiness(local_gaps(trace.arrival, 120)), 3)}
    return {
        "description": "Chat of a large cloud: short prompts, short answers, one hour with its rise and fall.",
        "source": "Azure LLM inference trace 2023, conversation (github.com/Azure/AzurePublicDataset, b469a11)",
        "licence": "CC-BY-4.0",
        **_size(trace),
        "arrivals": curve(trace.arrival, 120, within),
        "lengths": lengths(trace.prompt_tokens, trace.output_tokens),
    }


def azure_code(data: Path) -> Spec:
    trace = read_trace(data / "azure-2023/AzureLLMInferenceTrace_code.csv.gz")
    shape = quantiles(np.diff(trace.arrival), TAIL, digits=5)
    return {
        "description": "Code completion of a large cloud: long prompts, very short answers, bursts and silences.",
        "source": "Azure LLM inference trace 2023, code (github.com/Azure/AzurePublicDataset, b469a11)",
        "licence": "CC-BY-4.0",
        **_size(trace),
        "arrivals": {"process": "gaps", "rate": round(trace.rate, 4), "q": shape["q"], "values": shape["values"]},
        "lengths": lengths(trace.prompt_tokens, trace.output_tokens),
    }


def mooncake_conversation(data: Path) -> Spec:
    trace = read_trace(data / "mooncake/conversation_trace.jsonl.gz")
    parent, matched = parents(trace)
    assert trace.prefix is not None
    later = np.flatnonzero(parent >= 0)
    before = parent[later]
    first, turns = _conversations(parent)
    prompt = trace.prompt_tokens
    added = prompt[later] - prompt[before] - trace.output_tokens[before]
    whole = matched[later] >= trace.prefix.counts()[before]
    shared = trace.prefix.block_tokens
    starts = trace.arrival[first]
    spec: Spec = {
        "description": "Kimi's chat: long prompts, one system prompt of 512 tokens, conversations that come back.",
        "source": "Mooncake FAST'25 conversation trace (github.com/kvcache-ai/Mooncake, 3b5a594)",
        "licence": "Apache-2.0",
        **_size(trace),
        "requests_per_start": round(len(trace) / len(first), 4),
        "arrivals": {
            "process": "gamma",
            "rate": round((len(first) - 1) / float(starts[-1] - starts[0]), 4),
            "burstiness": 1.0,  # time stamps are in ticks of 3 s: finer structure is not in the trace
        },
        "lengths": {
            "prompt": quantiles(np.maximum(prompt[first] - shared, 1)),
            "output": quantiles(trace.output_tokens),
        },
        "sessions": {
            "turns": _choice(turns[first]),
            "turns_correlation": 0.0,
            "think_time_s": quantiles(trace.arrival[later] - trace.arrival[before], digits=1),
            "closed_loop": False,
            "new_tokens": quantiles(np.maximum(added[whole], 1)),
            "shared_prefix_tokens": shared,
            "edit_probability": round(float(1 - whole.mean()), 3),
            "max_context_tokens": int((prompt + trace.output_tokens).max()),
            "block_tokens": shared,
        },
    }
    spec["sessions"]["turns_correlation"] = _correlation_for_hits(spec, prefix_hit_ratio(trace) or 0.0, len(trace))
    return spec


def _correlation_for_hits(spec: Spec, wanted: float, num_requests: int) -> float:
    """The correlation of first prompt and turns at which generated traces have the real one's ideal hit ratio.

    Measured on the trace it would be biased: a conversation that begins below two blocks cannot be recognised.
    """
    ratios = []
    tried = np.round(np.arange(0.0, 0.21, 0.02), 2)
    for rho in tried:
        spec["sessions"]["turns_correlation"] = float(rho)
        preset = preset_of("fit", spec)
        traces = [generate_preset(preset, num_requests=num_requests, generators=Generators.of(s)) for s in range(4)]
        ratios.append(float(np.mean([prefix_hit_ratio(trace) or 0.0 for trace in traces])))
    return float(tried[int(np.abs(np.array(ratios) - wanted).argmin())])


def _choice(values: Ints) -> Spec:
    found, counts = np.unique(values, return_counts=True)
    return {"distribution": "choice", "values": found.tolist(), "weights": counts.tolist()}


def parents(trace: Trace) -> tuple[Ints, Ints]:
    """For each request the last earlier one that it shares most blocks with (more than one), and how many it shares.

    -1 where there is none: a first block that everybody has is a system prompt, not a conversation.
    """
    assert trace.prefix is not None
    owner: dict[int, int] = {}
    matched = infinite_cache_hits(trace.prefix)
    parent = np.full(len(trace), -1, dtype=np.int64)
    for i in range(len(trace)):
        ids = trace.prefix.row(i).tolist()
        if matched[i] > 1:
            parent[i] = owner[ids[matched[i] - 1]]
        owner.update(dict.fromkeys(ids, i))
    return parent, matched


def _conversations(parent: Ints) -> tuple[Ints, Ints]:
    """Rows that begin a conversation, and for every row the length of its conversation's longest line of turns."""
    root, depth = np.arange(len(parent)), np.ones(len(parent), dtype=np.int64)
    for i in np.flatnonzero(parent >= 0):
        root[i], depth[i] = root[parent[i]], depth[parent[i]] + 1
    turns = np.bincount(root, minlength=len(parent))
    return np.flatnonzero(parent < 0), turns


def sharegpt(_: Path) -> Spec:
    """Two parameters (and the prompts' bound) a side from the two or three statistics that are published of it."""
    prompt = lognormal_of(median=74, p95=1484, mean=306)
    return {
        "description": "ShareGPT chat with GPT-4: short questions with a long tail; lengths only, Poisson arrivals.",
        "source": "statistics of ShareGPT-GPT4 published in Llumnix, table 1 (OSDI 2024, arXiv:2406.03243)",
        "licence": "published figures",
        "rate": 10.0,
        "requests": 0,  # no rows: published statistics
        "arrivals": {"process": "poisson", "rate": 10.0},
        "lengths": {"prompt": prompt, "output": normal_of(median=487, mean=500), "correlation": 0.0},
    }


def lognormal_of(*, median: float, p95: float, mean: float) -> Spec:
    """A lognormal with that median and 95th percentile, bounded where its mean becomes that of the data."""
    from scipy.optimize import brentq
    from scipy.special import ndtri

    u = (np.arange(200_000) + 0.5) / 200_000
    sigma = round(float(np.log(p95 / median) / ndtri(0.95)), 3)

    def excess(high: float) -> float:
        return float(LogNormal(median, sigma, 4, high).ppf(u).mean()) - mean

    return {
        "distribution": "lognormal",
        "median": median,
        "sigma": sigma,
        "low": 4,
        "high": round(brentq(excess, p95, 1e6)),
    }


def normal_of(*, median: float, mean: float) -> Spec:
    """A normal cut at 4 tokens from below, as wide as lifts its mean from the median to that of the data."""
    from scipy.optimize import brentq

    u = (np.arange(200_000) + 0.5) / 200_000

    def excess(std: float) -> float:
        return float(Normal(median, std, 4).ppf(u).mean()) - mean

    return {"distribution": "normal", "mean": median, "std": round(brentq(excess, 1.0, 10 * median)), "low": 4}


def sharegpt_long(data: Path) -> Spec:
    names = {"arrival": "arrival_s", "prompt_tokens": "input_tokens"}
    trace = read_trace(data / "lengths/sharegpt-llama-3.1-8b-300-sps10.csv", "table", columns=names)
    return {
        "description": "ShareGPT chats with answers of 512 tokens and more, Llama-3.1 tokens; lengths only, Poisson.",
        "source": "300 ShareGPT requests of LLMServingSim (github.com/casys-kaist/LLMServingSim, 5daddb2)",
        "licence": "MIT",
        "rate": 10.0,
        "requests": len(trace),
        "arrivals": {"process": "poisson", "rate": 10.0},
        "lengths": lengths(trace.prompt_tokens, trace.output_tokens),
    }


def arxiv_summarization(data: Path) -> Spec:
    trace = read_trace(data / "lengths/arxiv_summarization_lengths.csv.gz")
    return {
        "description": "Summaries of papers, cut at 4K tokens of context; lengths only, Poisson arrivals.",
        "source": "arXiv summarization lengths of Vidur (github.com/microsoft/vidur, 7d47513), Llama-2 tokens",
        "licence": "MIT",
        "rate": 1.0,
        "requests": len(trace),
        "arrivals": {"process": "poisson", "rate": 1.0},
        "lengths": lengths(trace.prompt_tokens, trace.output_tokens),
    }


def reasoning(data: Path) -> Spec:
    return {
        "description": "DeepSeek-R1 on a cloud: outputs of thousands of tokens; the largest clients, over one day.",
        **_servegen(data / "servegen", "deepseek-r1", keep=12),
    }


def servegen_large(data: Path) -> Spec:
    return {
        "description": "A large general model on a cloud: the largest clients and all others pooled, over one day.",
        **_servegen(data / "servegen", "m-large", keep=16),
    }


def _servegen(folder: Path, model: str, *, keep: int) -> Spec:
    """The ``keep`` clients with most requests and one for the rest: hourly rates, gaps' CV, lengths (quantiles)."""
    from traces.formats.servegen import read_mix

    mix = read_mix(folder / f"{model}-trace.csv.gz", folder / f"{model}-quantiles.jsonl.gz")
    requests = mix.requests_per_client()
    order = sorted(requests, key=lambda c: -requests[c])
    groups = [(f"client-{c}", [c]) for c in order[:keep]] + [("others", order[keep:])]
    total = sum(requests.values())
    clients = []
    for name, members in groups:
        share = sum(requests[c] for c in members) / total
        within = {"process": "gamma", "rate": 1.0, "burstiness": round(mix.burstiness(members), 4)}
        hourly = mix.hourly(members)
        steps = [float(t) for h in range(24) for t in (3600 * h, 3600 * (h + 1))]
        clients.append({
            "name": name,
            "share": round(share, 5),
            "arrivals": {
                "process": "rate_curve",
                "times_s": steps,
                "rates": [round(float(r), 4) for r in np.repeat(hourly, 2)],
                "within": within,
            },
            "lengths": {
                "prompt": quantiles_of_mixture(*mix.length_windows("input_tokens", members)),
                "output": quantiles_of_mixture(*mix.length_windows("output_tokens", members)),
            },
        })  # fmt: skip
    return {
        "source": f"ServeGen {model} (github.com/alibaba/ServeGen, f891d11; arXiv:2505.09999)",
        "licence": "Apache-2.0",
        "rate": round(total / mix.duration, 4),
        "requests": round(total),
        "clients": clients,
    }


def quantiles_of_mixture(q: Floats, values: NDArray[Any], weight: Floats) -> Spec:
    """Quantiles of a weighted mixture of distributions given by their quantiles: (k windows, len(q))."""
    fine = np.linspace(0, 1, 400, endpoint=False) + 1 / 800
    draws = np.concatenate([np.interp(fine, q, row) for row in values])
    weights = np.repeat(weight / weight.sum() / len(fine), len(fine))
    order = np.argsort(draws)
    at = np.cumsum(weights[order]) - weights[order] / 2
    v = np.interp(GRID, at, draws[order])
    v[-1] = min(float(values.max()), _end_value(np.asarray(GRID), v, float((draws * weights).sum())))
    rounded = np.maximum.accumulate(np.round(v))
    return {"distribution": "quantiles", "q": [float(x) for x in GRID], "values": [int(x) for x in rounded]}


def _size(trace: Trace) -> Spec:
    return {"rate": round(trace.rate, 4), "requests": len(trace)}


FITS: dict[str, Callable[[Path], Spec]] = {
    "arxiv-summarization": arxiv_summarization,
    "azure-code": azure_code,
    "azure-conv": azure_conv,
    "mooncake-conversation": mooncake_conversation,
    "reasoning": reasoning,
    "servegen-large": servegen_large,
    "sharegpt": sharegpt,
    "sharegpt-long": sharegpt_long,
}


def write(name: str, spec: Spec, folder: Path = FOLDER) -> Path:
    import yaml

    path = folder / f"{name}.yaml"
    text = yaml.safe_dump(spec, sort_keys=False, allow_unicode=True, width=118, default_flow_style=None)
    path.write_text("# Written by: python -m traces.generate.fit (do not edit)\n" + text, encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"presets to fit; default: all of {', '.join(FITS)}")
    parser.add_argument("--data", type=Path, required=True, help="folder with the public traces")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder for the YAML files")
    args = parser.parse_args()
    unknown = sorted(set(args.names) - set(FITS))
    if unknown:
        parser.error(f"unknown preset {unknown[0]!r}; known: {', '.join(FITS)}")
    for name in args.names or FITS:
        write(name, FITS[name](args.data), args.out)


if __name__ == "__main__":
    main()
