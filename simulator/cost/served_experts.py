"""What a layer's experts cost when they are served as ``ExpertServing`` says."""

from __future__ import annotations

from functools import partial
from math import floor, log2

from simulator.cost.expert_cache import ExpertMix, misses_per_layer, touched_per_layer
from simulator.cost.expert_layer import ExpertLayer
from simulator.cost.operators import Operators, Price
from simulator.cost.placement import Placed
from simulator.model.architecture import Layer, Model

HOST_EFFICIENCY = 0.75  # of PCIe's rate: 24 of 32 GB/s, as MoE-Infinity found on PCIe 4 (section 6)
SIMULATED = 64  # sequences: larger batches miss in proportion to the experts they touch


class ServedExperts(ExpertLayer):
    """An expert layer under an ``ExpertServing``."""

    def __init__(self, operators: Operators, model: Model, placed: Placed, layer: Layer, busiest: float = 1.0) -> None:
        super().__init__(operators, model, placed, layer, busiest)
        assert placed.experts is not None
        assert layer.moe is not None
        self._serving, self._num_experts = placed.experts, layer.moe.num_experts
        self._bytes = sum(n * k * self._format.bytes_per_weight(k) for n, k in self._shapes)
        self._flops = sum(2.0 * n * k for n, k in self._shapes)
        layers = sum(x.moe is not None for x in model.layers)
        cached = self._num_experts if self._serving.cached_experts is None else self._serving.cached_experts
        self._resident = cached
        self._mix = ExpertMix(
            layers, self._num_experts, layer.moe.top_k, int(layers * cached),
            self._serving.skew, self._serving.sequence_skew,
        )  # fmt: skip
        if self._serving.local_share is not None:
            self._copies *= (1.0 - self._serving.local_share) * placed.expert_ranks / max(placed.expert_ranks - 1, 1)
        if self._serving.capacity_token_fraction is not None:  # whole buffers travel
            self._copies *= self._padded_visits / layer.moe.top_k

    @property
    def _padded_visits(self) -> float:
        assert self._serving.capacity_token_fraction is not None
        return max(self._num_experts * self._serving.capacity_token_fraction, self._top_k)

    def experts(self, tokens: int) -> Price:
        price = self._computed(tokens)
        return price if self._resident >= self._num_experts else self._with_misses(price, tokens)

    def _computed(self, tokens: int) -> Price:
        if self._serving.capacity_token_fraction is None:
            return super().experts(tokens)
        share = self._experts.copies / self._num_experts  # of the experts that are on this rank
        ops, wide = self._ops, self._placed.dtype_bytes
        visits = min(self._padded_visits * share, self._experts.copies)
        return ops.experts(tokens, visits, self._experts.copies, self._shapes, self._format, wide)

    def exchange(self, rows: int) -> list[tuple[str, Price]]:
        found = list(super().exchange(rows))
        return found[:1] if self._serving.context_coherent else found

    # -- experts in host memory ---------------------------------------------------------------------------------

    def _with_misses(self, price: Price, tokens: int) -> Price:
        """``price`` of the experts' products, and what getting at those that are not there adds."""
        s, missed = self._serving, self.misses(tokens)
        fetch = missed * self._bytes / (self._ops.gpu.host_bandwidth * HOST_EFFICIENCY)
        known = 1.0 if s.eviction == "stream" else s.prefetch
        fetched = max(price.seconds, known * fetch) + (1.0 - known) * fetch
        if s.on_miss == "fetch":
            seconds = fetched
        else:
            rows = tokens * self._top_k / max(self.touched(tokens), 1.0)
            each = max(rows * self._flops / s.cpu_flops, self._bytes / s.cpu_bandwidth)
            computed = max(price.seconds, missed * each)
            seconds = computed if s.on_miss == "compute" else min(computed, fetched)
        return price._replace(seconds=seconds, bound="network" if seconds > 2.0 * price.seconds else price.bound)

    def misses(self, tokens: int) -> float:
        """Experts of the layer that a step of so many tokens needs and that are not in GPU memory."""
        if self._serving.eviction == "stream":
            return self._num_experts - self._resident
        policy = self._serving.eviction
        here = self._between(partial(misses_per_layer, self._mix, policy), min(tokens, SIMULATED))
        if tokens > SIMULATED:
            here *= self.touched(tokens) / self.touched(SIMULATED)
        return min(here, float(self._num_experts))

    def hit_ratio(self, tokens: int) -> float:
        """Share of the experts that a step of so many sequences visits and that are in GPU memory."""
        return 1.0 - self.misses(tokens) / self.touched(tokens)

    def touched(self, tokens: int) -> float:
        """Different experts of the layer that so many tokens visit; beyond the simulated ones as independent draws."""
        if tokens <= SIMULATED:
            return self._between(partial(touched_per_layer, self._mix), tokens)
        left = 1.0 - self.touched(SIMULATED) / self._num_experts
        return float(self._num_experts * (1.0 - left ** (tokens / SIMULATED)))

    @staticmethod
    def _between(of: partial[float], tokens: int) -> float:
        """Simulated at powers of two, straight lines in the logarithm between them."""
        exponent = floor(log2(tokens))
        low = of(2**exponent)
        share = log2(tokens) - exponent
        return low + (of(2 ** (exponent + 1)) - low) * share if share else low
