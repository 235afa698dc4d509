"""Prompt and output lengths, drawn together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.core.errors import TraceError
from traces.generate.distributions import Distribution, below_one, whole
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
        for name in ("prompt", "output"):
            if below_one(getattr(self, name)) == 1.0:
                raise TraceError(
                    f"lengths: every {name} drawn has 0 tokens; no engine serves less than 1: give 1 or more"
                )

    def notes(self) -> tuple[str, ...]:
        """What a draw does not take from its distribution as it stands: lengths below one token become 1."""
        shares = {name: below_one(getattr(self, name)) for name in ("prompt", "output")}
        return tuple(
            f"{100 * share:.2g} % of the {name} lengths are drawn below 1 token and become 1"
            for name, share in shares.items()
            if share > 0
        )

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
