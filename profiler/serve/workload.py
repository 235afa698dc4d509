"""Requests to serve: Poisson arrivals, lognormal lengths, random tokens; the same for every engine."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profiler.serve.spec import Experiment, Lengths


@dataclass(frozen=True, slots=True)
class Due:
    """A request and when it is due, in seconds since the start."""

    arrival_s: float
    prompt: NDArray[np.int64]
    output_tokens: int


def requests(experiment: Experiment, rate: float, name: str, vocab: int) -> list[Due]:
    """Same seed, same requests; every load draws its own arrivals and lengths."""
    rng = np.random.default_rng([experiment.seed, zlib.crc32(name.encode())])
    count = experiment.requests
    arrivals = rng.exponential(1 / rate, count).cumsum()
    prompts, outputs = lengths(experiment.prompt, count, rng), lengths(experiment.output, count, rng)
    return [
        Due(float(a - arrivals[0]), rng.integers(vocab, size=int(p)), int(o))
        for a, p, o in zip(arrivals, prompts, outputs, strict=True)
    ]


def closed_batch(number: int, prompt: int, output: int, vocab: int) -> list[Due]:
    """Equal requests, all at once."""
    rng = np.random.default_rng(number)
    return [Due(0.0, rng.integers(vocab, size=prompt), output) for _ in range(number)]


def lengths(spec: Lengths, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    drawn = rng.lognormal(np.log(spec.median), spec.sigma, count)
    return np.clip(np.rint(drawn), spec.low, spec.high).astype(np.int64)
