"""Power of a GPU by what it does, and what a power cap or a locked clock costs in time. Pure.

A GPU draws ``idle_w`` doing nothing and up to its TDP when its tensor cores are busy. In between, activity follows how
many tokens a step computes against how many it takes to be bound by compute (the ridge of the roofline): a decode of
one request streams the weights and leaves the tensor cores idle, a prompt of some hundred tokens fills them.

    activity = memory + (1 - memory) x sqrt(min(1, tokens / ridge))

``memory`` = 0.33 and the square root meet what the ML.ENERGY benchmark 3.0 measured on an H100 SXM of 700 W: 300 W at
batch 1 and 600 W at batch 128 (here 302 W and 556 W). Prompt phases reach the TDP (POLCA, arXiv:2308.12908; Splitwise,
arXiv:2311.18677). Decodes of few and long contexts draw less (137 to 300 W of an H200, arXiv:2605.11999): an upper
estimate there. Only GPUs are counted, no hosts.

A clock locked at the share ``f`` of its maximum scales the dynamic power of the cores by ``f`` squared (the voltage
falls with the frequency: an assumption); memory keeps its clock, and half of ``memory`` with it. Time bound by compute
grows by ``1 / f``, time bound by memory does not: prompts slow down, decodes hardly (POLCA). A power cap is the clock
that keeps to it, step by step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np

from simulator.core.errors import HardwareError
from simulator.cost.interface import Line, StepCost, UnevenStepCost
from simulator.hardware.gpu import Gpu

MEMORY_ACTIVITY = 0.33
MIN_CLOCK = 0.1  # of the maximum: what a cap cannot reach by lowering the clock further is refused
COMPUTE_SHARE_OF_DECODE = 0.05  # of a decode step's time that follows the core clock: launches, sampling


@dataclass(frozen=True, slots=True)
class PowerSetting:
    """How a GPU is run. cap_w: limit per GPU, None: its TDP. clock: share of the maximum core clock, 0 < clock <= 1."""

    cap_w: float | None = None
    clock: float = 1.0


@dataclass(frozen=True, slots=True)
class PowerModel:
    """Watts of one GPU. ridge_tokens: of a step that is bound by compute, all ranks of a replica together."""

    idle_w: float
    tdp_w: float
    ridge_tokens: float
    setting: PowerSetting = PowerSetting()
    memory: float = MEMORY_ACTIVITY
    queries: tuple[tuple[int, int], ...] = ()  # (first batch size, tokens computed per decoding request); else 1

    def decode_tokens(self, num_decodes: Any) -> Any:
        """Tokens that steps with so many decoding requests (an array) compute for them."""
        if not self.queries:
            return num_decodes
        first, tokens = zip(*self.queries, strict=True)
        return num_decodes * np.array(tokens)[np.searchsorted(first, np.maximum(num_decodes, first[0]), "right") - 1]

    def activity(self, tokens: Any) -> Any:
        """0 to 1, of steps that compute so many tokens (a number or an array)."""
        return self.memory + (1.0 - self.memory) * np.sqrt(np.minimum(np.asarray(tokens) / self.ridge_tokens, 1.0))

    def _at(self, tokens: Any, clock: Any) -> Any:
        """Watts at a share of the maximum clock."""
        still = 0.5 * self.memory
        return self.idle_w + (self.tdp_w - self.idle_w) * (still + (self.activity(tokens) - still) * clock**2)

    def clock(self, tokens: Any) -> Any:
        """Share of the maximum clock at which steps of so many tokens run, where nobody locks it at less."""
        cap = self.setting.cap_w
        if cap is None:
            return np.full(np.shape(tokens), self.setting.clock)
        still = 0.5 * self.memory
        room = ((cap - self.idle_w) / (self.tdp_w - self.idle_w) - still) / (self.activity(tokens) - still)
        return np.minimum(np.sqrt(np.clip(room, MIN_CLOCK**2, None)), self.setting.clock)

    def watts(self, tokens: Any, lock: Any = 1.0) -> Any:
        """Power while steps of so many tokens run, per GPU. lock: share of the maximum clock set from outside."""
        return self._at(tokens, np.minimum(self.clock(tokens), lock))


def power_model(gpu: Gpu, setting: PowerSetting | None = None) -> PowerModel:
    """Of a catalogue GPU; the ridge is that of 16-bit weights: 2 bytes and 2 FLOPs per weight and token.

    Raises HardwareError for a cap or clock that the GPU cannot keep.
    """
    setting = setting or PowerSetting()
    model = PowerModel(gpu.idle_w, gpu.tdp_w, gpu.peak("bf16")[1] / gpu.memory_bandwidth, setting)
    if not MIN_CLOCK <= setting.clock <= 1:
        raise HardwareError(
            f"a clock of {setting.clock:g} times the maximum cannot be locked.", remedy=f"Give {MIN_CLOCK:g} to 1."
        )
    least = float(model._at(model.ridge_tokens, MIN_CLOCK))  # noqa: SLF001 - its own module
    if setting.cap_w is not None and not least <= setting.cap_w <= gpu.tdp_w:
        raise HardwareError(
            f"{gpu.name} cannot keep to {setting.cap_w:g} W.",
            remedy=f"Give {least:.0f} W (its slowest clock) to {gpu.tdp_w:.0f} W (its TDP).",
        )  # fmt: skip
    return model


class ClockedCost:
    """Step times of a GPU whose clock is locked or whose power is capped.

    A step is bound by compute as far as its tokens fill the tensor cores, which is how its power is told too; the rest
    of its time keeps its pace, but for a small share.
    """

    def __init__(self, inner: StepCost, power: PowerModel) -> None:
        self._inner = inner
        self._power = power
        self.sliding_window = inner.sliding_window
        self.uneven = bool(getattr(inner, "uneven", False))
        self._lock = 1.0
        self._factors: dict[int, tuple[float, float]] = {}  # tokens -> slowdown of memory-bound, of compute-bound time

    def lock(self, clock: float) -> None:
        """Steps that are priced from now on run at no more than this share of the maximum clock."""
        self._lock = clock
        self._factors = {}

    def _factor(self, tokens: int) -> tuple[float, float]:
        known = self._factors.get(tokens)
        if known is None:
            stretch = 1.0 / min(float(self._power.clock(tokens)), self._lock) - 1.0
            known = self._factors[tokens] = (1.0 + COMPUTE_SHARE_OF_DECODE * stretch, 1.0 + stretch)
        return known

    def decode(  # noqa: PLR0917 - see UnevenStepCost
        self, num_decodes: int, context: int, windowed: int, growing: int, longest: int = 0, squares: int = 0
    ) -> Line:
        if self.uneven:
            uneven: UnevenStepCost = self._inner  # type: ignore[assignment]
            line = uneven.decode(num_decodes, context, windowed, growing, longest, squares)
        else:
            line = self._inner.decode(num_decodes, context, windowed, growing)
        slow = self._decode_factor(num_decodes)
        return Line(line.first * slow, line.increment * slow, line.valid_steps)

    def _decode_factor(self, num_decodes: int) -> float:
        """Large batches of decodes fill the tensor cores as prompts do."""
        memory, compute = self._factor(num_decodes)
        filled = min(num_decodes / self._power.ridge_tokens, 1.0)
        return memory + (compute - memory) * filled * filled

    def mixed(  # noqa: PLR0917
        self, num_decodes: int, context: int, windowed: int, chunks: Sequence[tuple[int, int]], num_sampled: int,
        longest: int = 0, squares: int = 0,
    ) -> float:  # fmt: skip
        if self.uneven:
            uneven: UnevenStepCost = self._inner  # type: ignore[assignment]
            seconds = uneven.mixed(num_decodes, context, windowed, chunks, num_sampled, longest, squares)
        else:
            seconds = self._inner.mixed(num_decodes, context, windowed, chunks, num_sampled)
        tokens = num_decodes + sum(new for new, _ in chunks)
        memory, compute = self._factor(tokens)
        filled = sqrt(min(tokens / self._power.ridge_tokens, 1.0))
        return seconds * (memory + (compute - memory) * filled)


class PowerProfile:
    """Step times and power of a replica at any clock, for controllers that have profiled it."""

    def __init__(self, inner: StepCost, power: PowerModel, num_gpus: int, max_num_seqs: int) -> None:
        self._cost, self._power, self._num_gpus = ClockedCost(inner, power), power, num_gpus
        self.max_num_seqs = max_num_seqs
        self.idle_w = power.idle_w * num_gpus

    def decode_s(self, batch: int, context_tokens: int, clock: float) -> float:
        """A step in which ``batch`` requests make a token each, s."""
        self._cost.lock(clock)
        window = self._cost.sliding_window
        windowed = 0 if window is None else min(context_tokens, batch * window)
        longest = -(-context_tokens // batch)
        return self._cost.decode(batch, context_tokens, windowed, 0, longest, batch * longest * longest).first

    def prompt_s(self, tokens: int, clock: float) -> float:
        """A step that computes one prompt of so many tokens, s."""
        self._cost.lock(clock)
        return self._cost.mixed(0, 0, 0, [(tokens, 0)], 1, 0, 0)

    def watts(self, tokens: int, clock: float) -> float:
        """Of all its GPUs while a step of so many tokens runs."""
        return float(self._power.watts(tokens, clock)) * self._num_gpus
