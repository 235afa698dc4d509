from __future__ import annotations

import math

import numpy as np
import pytest

from simulator.core.errors import ScenarioError
from simulator.survey.expression import Formula, Points

RUN = {"latency": {"ttft_s": {"mean": 0.5, "p99": None}}, "stability": {"verdict": "stable"}, "rate": 4.0}
FAST = {"latency": {"ttft_s": {"mean": 0.25, "p99": 1.0}}, "stability": {"verdict": "overloaded"}, "rate": 8.0}
SCOPE = {
    "slow": RUN,
    "fast": FAST,
    "points": Points([RUN | {"value": 1}, FAST | {"value": 2}]),
    "requests": {"ttft_s": np.array([1.0, 2.0, np.nan, 4.0]), "tenant": np.array(["a", "b", "a", "b"])},
}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("slow.latency.ttft_s.mean / fast.latency.ttft_s.mean", 2.0),
        ("slow['rate'] + 2 ** 3 - -1", 13.0),
        ("slow.stability.verdict == 'stable' and not fast.stability.verdict == 'stable'", 1.0),
        ("1 < slow.rate <= 4", 1.0),
        ("1 < slow.rate < 4", 0.0),
        ("points[1].rate / points[0].rate", 2.0),
        ("max(points.rate / points.value)", 4.0),
        ("rising(points.rate)", 1.0),
        ("rising(points.latency.ttft_s.mean)", 0.0),
        ("share(requests.ttft_s <= 2)", 0.5),
        ("mean(requests.ttft_s)", 7 / 3),
        ("percentile(requests.ttft_s, 50)", 2.0),
        ("count(requests.ttft_s <= 2 and requests.tenant == 'b')", 1.0),
        ("max(slow.rate, fast.rate)", 8.0),
        ("md1_wait(4, 0.125)", 0.0625),
    ],
)
def test_values(text: str, value: float) -> None:
    assert Formula(text).number(SCOPE) == pytest.approx(value)


def test_what_was_not_measured_is_never_within_a_band() -> None:
    assert math.isnan(Formula("slow.latency.ttft_s.p99").number(SCOPE))
    assert math.isnan(Formula("max(slow.latency.ttft_s.p99, 1)").number(SCOPE))
    assert Formula("slow.latency.ttft_s.p99 <= 5").number(SCOPE) == 0.0
    assert Formula("1 / (slow.rate - 4)").number(SCOPE) == math.inf
    assert md1_overload() == math.inf


def md1_overload() -> float:
    return Formula("md1_wait(10, 0.1)").number({})


@pytest.mark.parametrize(
    "text",
    ["__import__('os').system('true')", "slow.__class__()", "lambda: 1", "[x for x in slow]", "slow if 1 else fast", "1 +", "f'{slow}'"],
)
def test_a_formula_is_not_python(text: str) -> None:
    with pytest.raises(ScenarioError):
        Formula(text)


def test_names_are_explained() -> None:
    with pytest.raises(ScenarioError, match="Did you mean 'latency'"):
        Formula("slow.latencies.ttft_s.mean").number(SCOPE)
    with pytest.raises(ScenarioError, match="unknown function 'maxx'"):
        Formula("maxx(1, 2)")
    with pytest.raises(ScenarioError, match="has 2 values"):
        Formula("points.rate").number(SCOPE)
    assert Formula("slow.rate / fast.rate").names == {"slow", "fast"}
