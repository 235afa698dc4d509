"""Which model answers: cascades and routers between two models."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simulator.core.errors import TraceError
from traces.models import cascade, choose_model
from traces.trace import Trace


def questions(n: int = 20_000, **columns: Any) -> Trace:
    return Trace(np.arange(n) * 0.1, np.full(n, 100), np.arange(n) % 50 + 1, **columns)


def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def test_each_question_goes_on_until_an_answer_is_accepted() -> None:
    asked = cascade(questions(), ["small", "medium", "large"], [0.7, 0.5], rng(), scorer_s=0.2)
    assert asked.session is not None and asked.turn is not None and asked.think_time is not None and asked.model
    _, models_asked = np.unique(asked.session, return_counts=True)
    shares = np.bincount(models_asked)[1:] / 20_000
    np.testing.assert_allclose(shares, [0.7, 0.15, 0.15], atol=0.01)
    np.testing.assert_array_equal(asked.turn, asked.model.codes)
    assert np.isnan(asked.think_time[asked.turn == 0]).all()
    assert (asked.think_time[asked.turn > 0] == 0.2).all()


def test_the_next_model_gets_the_same_question() -> None:
    asked = cascade(questions(), ["small", "large"], [0.4], rng())
    assert asked.session is not None
    np.testing.assert_array_equal(asked.output_tokens, questions().output_tokens[asked.session])
    np.testing.assert_array_equal(asked.arrival, questions().arrival[asked.session])


@pytest.mark.parametrize(("stop", "rows"), [(1.0, 1), (0.0, 2)])
def test_certain_answers(stop: float, rows: int) -> None:
    assert len(cascade(questions(10), ["small", "large"], [stop], rng())) == 10 * rows


@pytest.mark.parametrize(
    ("names", "stop", "scorer_s", "message"),
    [(["one"], [], 0.0, "1 models"), (["a", "b"], [0.1, 0.2], 0.0, "2 probabilities"), (["a", "b"], [1.2], 0.0, "1.2"),
     (["a", "b"], [0.5], -1.0, "-1.0")],
)  # fmt: skip
def test_what_cannot_be_a_cascade(names: list[str], stop: list[float], scorer_s: float, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        cascade(questions(3), names, stop, rng(), scorer_s=scorer_s)


def test_conversations_are_refused() -> None:
    turns = questions(2, session=np.zeros(2), turn=np.arange(2), think_time=np.array([np.nan, 1.0]))
    with pytest.raises(TraceError, match="already wait"):
        cascade(turns, ["a", "b"], [0.5], rng())


def test_a_router_asks_one_model_once() -> None:
    asked = choose_model(questions(), "strong", "weak", 0.3, rng())
    assert asked.model is not None and len(asked) == 20_000
    assert (asked.model.values() == "strong").mean() == pytest.approx(0.3, abs=0.01)
    with pytest.raises(TraceError, match=r"1\.5"):
        choose_model(questions(3), "strong", "weak", 1.5, rng())
