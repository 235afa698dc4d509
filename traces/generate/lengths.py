"""Prompt and output lengths, drawn together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.core.errors import TraceError
from traces.generate.distributions import Distribution, whole
from traces.trace import Floats, Ints


@dataclass(frozen=True, slots=True)
class Lengths:
    """Prompt and output tokens with a rank correlation.

    correlation: Spearman's rho between the two, realised by a Gaussian copula (its parameter is ``2 sin(pi rho / 6)``,
    Kruskal 1958, doi:10.1080/01621459.1958.10501481); each keeps its own distribution.
    """

    prompt: Distribution
    output: Distribution
    correlation: float = 0.0

    def __post_init__(self) -> None:
        if not -1 <= self.correlation <= 1:
            raise TraceError(f"lengths: correlation must lie in [-1, 1], not {self.correlation}")

    def sample(self, n: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """``n`` pairs (prompt_tokens, output_tokens), each >= 1."""
        u, v = coupled_uniforms(n, self.correlation, rng)
        return whole(self.prompt, u), whole(self.output, v)


def coupled_uniforms(n: int, spearman: float, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Two uniform columns whose ranks correlate by ``spearman``."""
    if spearman == 0:
        u = rng.random((2, n))
        return u[0], u[1]
    from scipy.special import ndtr

    z = rng.standard_normal((2, n))
    rho = 2 * np.sin(np.pi * spearman / 6)
    return np.asarray(ndtr(z[0])), np.asarray(ndtr(rho * z[0] + np.sqrt(1 - rho**2) * z[1]))
