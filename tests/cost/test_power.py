"""Power by what a GPU does, and what caps and clocks cost in time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.core.errors import HardwareError
from simulator.cost.analytic import LinearCost
from simulator.cost.power import ClockedCost, PowerSetting, power_model
from simulator.hardware.gpu import gpu, gpus

H100 = gpu("H100")
LINEAR = LinearCost(0.005, 2e-5, 1e-4, 1e-8, 1e-9)


def test_an_h100_draws_what_was_measured() -> None:
    """ML.ENERGY 3.0: 300 W at batch 1, 600 W at batch 128; prompts reach the TDP (POLCA)."""
    model = power_model(H100)
    assert float(model.watts(1)) == pytest.approx(300, rel=0.05)
    assert float(model.watts(128)) == pytest.approx(600, rel=0.10)
    assert float(model.watts(4096)) == 700


@pytest.mark.parametrize("name", list(gpus()))
def test_power_lies_between_idle_and_tdp_and_grows_with_the_batch(name: str) -> None:
    card = gpu(name)
    watts = power_model(card).watts(np.arange(1, 2000))
    assert (watts > card.idle_w).all()
    assert (watts <= card.tdp_w + 1e-9).all()
    assert (np.diff(watts) >= 0).all()


@settings(max_examples=200, deadline=None)
@given(tokens=st.integers(1, 9000), cap=st.floats(250, 700), clock=st.floats(0.3, 1.0))
def test_a_cap_is_kept_and_binds_only_where_it_must(tokens: int, cap: float, clock: float) -> None:
    free = power_model(H100, PowerSetting(clock=clock))
    capped = power_model(H100, PowerSetting(cap, clock))
    watts = float(capped.watts(tokens))
    assert watts <= max(cap, 0.0) + 1e-6
    if float(free.watts(tokens)) <= cap:
        assert watts == pytest.approx(float(free.watts(tokens)))


def test_half_the_power_slows_prompts_down_and_hardly_decodes() -> None:
    """POLCA: decode tolerates a cap of half the TDP, prompts do not."""
    cost = ClockedCost(LINEAR, power_model(H100, PowerSetting(cap_w=350)))
    decode = cost.decode(8, 8000, 0, 0).first / LINEAR.decode(8, 8000, 0, 0).first
    prompt = cost.mixed(0, 0, 0, [(4096, 0)], 1) / LINEAR.mixed(0, 0, 0, [(4096, 0)], 1)
    assert 1.0 <= decode < 1.02
    assert prompt > 1.3


def test_a_full_clock_changes_nothing() -> None:
    cost = ClockedCost(LINEAR, power_model(H100))
    assert cost.decode(32, 32_000, 0, 0) == LINEAR.decode(32, 32_000, 0, 0)
    assert cost.mixed(3, 900, 0, [(512, 0)], 4) == LINEAR.mixed(3, 900, 0, [(512, 0)], 4)


@settings(max_examples=100, deadline=None)
@given(low=st.floats(0.3, 0.9), more=st.floats(0.01, 0.1), batch=st.integers(1, 512), prompt=st.integers(1, 8192))
def test_a_lower_clock_is_never_faster_and_never_draws_more(low: float, more: float, batch: int, prompt: int) -> None:
    slow, fast = (power_model(H100, PowerSetting(clock=clock)) for clock in (low, low + more))
    assert float(slow.watts(batch + prompt)) <= float(fast.watts(batch + prompt))
    slower, faster = ClockedCost(LINEAR, slow), ClockedCost(LINEAR, fast)
    assert slower.decode(batch, 1000, 0, 0).first >= faster.decode(batch, 1000, 0, 0).first
    assert slower.mixed(batch, 1000, 0, [(prompt, 0)], 1) >= faster.mixed(batch, 1000, 0, [(prompt, 0)], 1)
    assert slower.mixed(batch, 1000, 0, [(prompt, 0)], 1) <= LINEAR.mixed(batch, 1000, 0, [(prompt, 0)], 1) / low + 1e-9


def test_what_the_card_cannot_do_is_refused() -> None:
    with pytest.raises(HardwareError, match="cannot keep to 100 W") as caught:
        power_model(H100, PowerSetting(cap_w=100))
    assert "700 W" in str(caught.value.remedy)
    with pytest.raises(HardwareError, match="cannot be locked"):
        power_model(H100, PowerSetting(clock=0.05))
