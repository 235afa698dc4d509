"""The equilibrium that controllers plan with, on a replica whose numbers are round."""

from __future__ import annotations

import pytest

from simulator.scaling.steady import Load, steady


class Round:
    """A decode step takes 10 ms, a prompt token 0.1 ms, each over the clock; 100 W idle, 200 W at work."""

    max_num_seqs = 64
    idle_w = 100.0

    def decode_s(self, batch: int, context_tokens: int, clock: float) -> float:
        return 0.01 / clock

    def prompt_s(self, tokens: int, clock: float) -> float:
        return tokens * 1e-4 / clock

    def watts(self, tokens: int, clock: float) -> float:
        return 100.0 + 100.0 * clock**2


def test_prompts_take_their_share_and_decodes_the_rest() -> None:
    """4,000 prompt tokens a second on two replicas are 20 % of each one's time: steps of 10 ms come every 12.5 ms, and
    2,400 tokens a second need batches of 15. A prompt of 500 tokens takes 50 ms, behind others 6.25 ms on average."""
    found = steady(Load(2400.0, 4000.0, 500.0, 100.0), 2, 1.0, Round())
    assert found is not None
    assert found.tpot_s == pytest.approx(0.0125)
    assert found.ttft_s == pytest.approx(0.05 * (1 + 0.2 / 1.6) + 0.01)
    assert found.watts == pytest.approx(200.0)  # always busy


def test_half_the_clock_is_slower_and_draws_a_quarter_above_idle() -> None:
    found = steady(Load(2400.0, 4000.0, 500.0, 100.0), 2, 0.5, Round())
    assert found is not None
    assert found.tpot_s == pytest.approx(0.02 / 0.6)
    assert found.watts == pytest.approx(125.0)


def test_idle_replicas_draw_what_they_must() -> None:
    found = steady(Load(10.0, 0.0, 0.0, 100.0), 1, 1.0, Round())
    assert found is not None
    assert found.watts == pytest.approx(110.0)  # a token every 100 ms in steps of 10 ms


@pytest.mark.parametrize("load", [Load(0.0, 9500.0, 500.0, 0.0), Load(6500.0, 0.0, 0.0, 100.0)])
def test_what_cannot_be_kept_up_with_is_none(load: Load) -> None:
    """More than 90 % prompts, or batches beyond 64."""
    assert steady(load, 1, 1.0, Round()) is None
