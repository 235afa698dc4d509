"""Which model answers a request, decided before the cluster sees it: traces whose rows name their models.

A cascade asks one model after the other, so a question becomes a conversation whose turns repeat it; a router asks one
model once. Whether an answer is good enough is an input: a probability, not something that is simulated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from simulator.core.errors import TraceError
from traces.trace import Labels, Trace


def cascade(
    trace: Trace, models: Sequence[str], stop: Sequence[float], rng: np.random.Generator, *, scorer_s: float = 0.0
) -> Trace:
    """Every request asks ``models`` in order until a scorer accepts an answer (FrugalGPT, arXiv:2305.05176).

    stop: for each model but the last, the probability that its answer is accepted; the last one's always is.
    scorer_s: from an answer to the next question, s. The next model gets the same prompt and writes as many tokens.
    Raises TraceError where requests already wait for each other or the numbers make no sense.
    """
    if len(models) < 2 or len(stop) != len(models) - 1:
        raise TraceError(
            f"cascade: {len(models)} models and {len(stop)} probabilities to stop", where=trace.source,
            remedy="Give at least two models, and a probability for each but the last.",
        )  # fmt: skip
    if not all(0 <= p <= 1 for p in stop) or not 0 <= scorer_s < float("inf"):
        raise TraceError(
            f"cascade: probabilities must lie in [0, 1], not {list(stop)}, and scorer_s must be >= 0 s, not {scorer_s}",
            where=trace.source,
        )
    if trace.think_time is not None and not np.isnan(trace.think_time).all():
        raise TraceError(
            "cascade: requests of this trace already wait for earlier turns", where=trace.source,
            remedy="Use a trace of single requests.",
        )  # fmt: skip
    accepted = rng.random((len(trace), len(stop))) < np.asarray(stop)
    asked = 1 + np.cumprod(~accepted, axis=1).sum(axis=1)  # models that a question gets to
    question = np.repeat(np.arange(len(trace)), asked)
    turn = np.arange(len(question)) - np.repeat(np.cumsum(asked) - asked, asked)
    return replace(
        trace.select(question),
        session=question,
        turn=turn,
        think_time=np.where(turn > 0, scorer_s, np.nan),
        model=Labels(turn.astype(np.int32), tuple(models)),
    )


def choose_model(trace: Trace, strong: str, weak: str, strong_share: float, rng: np.random.Generator) -> Trace:
    """``strong_share`` of the requests, drawn one by one, ask ``strong`` and the others ``weak`` (RouteLLM,
    arXiv:2406.18665: a threshold on a predicted win rate; what share that is for which quality is an input).

    Raises TraceError for a share outside [0, 1].
    """
    if not 0 <= strong_share <= 1:
        raise TraceError(f"choose_model: strong_share must lie in [0, 1], not {strong_share}", where=trace.source)
    codes = (rng.random(len(trace)) >= strong_share).astype(np.int32)
    return replace(trace, model=Labels(codes, (strong, weak)))
