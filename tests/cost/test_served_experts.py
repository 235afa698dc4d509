"""Experts in host memory, padded, or placed by affinity."""

from __future__ import annotations

from itertools import pairwise

import pytest

from simulator.core.errors import ModelError
from simulator.cost.calibrated import cost_model
from simulator.cost.expert_cache import ExpertMix, Policy, misses_per_layer, touched_per_layer
from simulator.cost.expert_serving import ExpertServing
from simulator.cost.memory import memory_plan
from simulator.cost.placement import Deployment
from simulator.cost.served_experts import HOST_EFFICIENCY, ServedExperts
from simulator.cost.step import OperatorCost
from simulator.hardware.gpu import gpu
from simulator.model.catalogue import model

MIXTRAL = model("mistralai/Mixtral-8x7B-v0.1")
QWEN = model("Qwen/Qwen3-30B-A3B")
A5000 = gpu("RTX-A5000")
EXPERT_BYTES = 3 * 4096 * 14336 * 2


def mix(slots: int, skew: float = 0.0, own: float = 0.0) -> ExpertMix:
    return ExpertMix(layers=6, num_experts=8, top_k=2, slots=slots, skew=skew, sequence_skew=own)


def served(serving: ExpertServing, **deployment: object) -> tuple[OperatorCost, ServedExperts]:
    cost = cost_model(MIXTRAL, A5000, None, Deployment(experts=serving, **deployment))  # type: ignore[arg-type]
    (layer,) = cost.expert_layers(eplb=False).values()
    assert isinstance(layer, ServedExperts)
    return cost, layer


class TestCache:
    def test_a_cache_of_everything_misses_nothing(self) -> None:
        for policy in ("lru", "activation-aware"):
            assert misses_per_layer(mix(48, own=1.0), policy, 1) == pytest.approx(0.0, abs=0.02)

    def test_even_visits_hit_a_static_cache_by_its_share(self) -> None:
        hit = 1 - misses_per_layer(mix(24), "popular", 1) / 2
        assert hit == pytest.approx(0.5, abs=0.05)

    def test_lru_thrashes_on_layers_in_turn(self) -> None:
        """A pass visits 6 layers x 2 experts before it comes back: fewer slots than that hold nothing in time."""
        assert misses_per_layer(mix(9), "lru", 1) == 2.0

    def test_what_sequences_prefer_is_kept_by_who_looks_at_them(self) -> None:
        aware, lru = (misses_per_layer(mix(16, own=1.5), p, 1) for p in ("activation-aware", "lru"))
        assert aware < lru - 0.2

    def test_more_slots_never_hurt_much_and_skew_helps(self) -> None:
        policies: tuple[Policy, ...] = ("lru", "popular", "activation-aware")
        for policy in policies:
            found = [misses_per_layer(mix(s, own=1.0), policy, 2) for s in (6, 16, 32, 48)]
            assert found == sorted(found, reverse=True)
        assert misses_per_layer(mix(12, skew=2.0), "popular", 1) < misses_per_layer(mix(12), "popular", 1)

    def test_touched_is_the_union_of_independent_sequences(self) -> None:
        assert touched_per_layer(mix(8), 1) == 2.0
        assert touched_per_layer(mix(8), 4) == pytest.approx(8 * (1 - 0.75**4), rel=0.05)
        known = touched_per_layer.cache_info()
        touched_per_layer(mix(8), 4)  # large batches ask for the same again, at seconds each for hundreds of experts
        assert touched_per_layer.cache_info().hits == known.hits + 1


class TestPrice:
    def test_streaming_layers_takes_what_the_link_takes(self) -> None:
        cost, _ = served(ExpertServing(cached_experts=0, eviction="stream"))
        link = A5000.host_bandwidth * HOST_EFFICIENCY
        assert cost.decode(1, 100, 100, 0).first == pytest.approx(32 * 8 * EXPERT_BYTES / link, rel=0.02)

    def test_known_early_comes_behind_the_products(self) -> None:
        late, early = (served(ExpertServing(cached_experts=2, prefetch=p))[1] for p in (0.0, 1.0))
        computed = served(ExpertServing(cached_experts=8))[1].experts(512).seconds
        fetch = late.misses(512) * EXPERT_BYTES / (A5000.host_bandwidth * HOST_EFFICIENCY)
        assert late.experts(512).seconds == pytest.approx(computed + fetch)
        assert early.experts(512).seconds == pytest.approx(max(computed, fetch))

    def test_the_cpu_computes_a_few_rows_and_the_link_brings_experts_for_many(self) -> None:
        """Fiddler's crossover."""
        here = {"cached_experts": 2.0, "eviction": "popular", "cpu_flops": 1e12, "cpu_bandwidth": 1e11}
        fetch = served(ExpertServing(cached_experts=2, eviction="popular"))[1]
        compute = served(ExpertServing(on_miss="compute", **here))[1]  # type: ignore[arg-type]
        faster = served(ExpertServing(on_miss="faster", **here))[1]  # type: ignore[arg-type]
        assert compute.experts(1).seconds < fetch.experts(1).seconds / 3
        assert compute.experts(8192).seconds > fetch.experts(8192).seconds
        for tokens in (1, 64, 8192):
            both = (fetch.experts(tokens).seconds, compute.experts(tokens).seconds)
            assert faster.experts(tokens).seconds == min(both)

    def test_prices_never_fall_with_tokens(self) -> None:
        _, layer = served(ExpertServing(cached_experts=2, eviction="activation-aware", sequence_skew=1.0))
        seconds = [layer.experts(n).seconds for n in (1, 2, 4, 8, 16, 64, 65, 512, 4096)]
        assert all(b >= a * 0.97 for a, b in pairwise(seconds))

    def test_memory_holds_what_is_cached(self) -> None:
        def weights(cached: float) -> int:
            plan = memory_plan(MIXTRAL, A5000, max_model_len=1024, max_num_seqs=4, cached_experts=cached)
            return plan.weight_bytes

        assert weights(1.5) - weights(1.0) == pytest.approx(32 * 0.5 * EXPERT_BYTES, rel=1e-6)

    def test_static_gating_computes_every_expert_s_capacity(self) -> None:
        exact, padded = (served(ExpertServing(capacity_token_fraction=f))[1] for f in (None, 1.0))
        rows = 4096
        assert padded.experts(rows).flops == pytest.approx(exact.experts(rows).flops * 8 / 2)
        assert served(ExpertServing(capacity_token_fraction=0.25))[1].experts(rows) == exact.experts(rows)


class TestExchange:
    def layer(self, serving: ExpertServing | None) -> ServedExperts:
        deployment = Deployment(
            data_parallel_size=4, enable_expert_parallel=True, all2all_backend="deepep_high_throughput", experts=serving
        )
        cost = cost_model(QWEN, gpu("H200-SXM"), None, deployment)
        (layer,) = cost.expert_layers(eplb=False).values()
        return layer  # type: ignore[return-value]  # an ExpertLayer without a serving, asked for its exchange alone

    def test_tokens_whose_expert_is_here_do_not_travel(self) -> None:
        chance, half = self.layer(ExpertServing(local_share=0.25)), self.layer(ExpertServing(local_share=0.625))
        rows = 10_000_000
        (_, out), (_, back) = chance.exchange(rows)
        (_, less), _ = half.exchange(rows)
        assert less.bytes / out.bytes == pytest.approx(0.5)
        assert [name for name, _ in self.layer(ExpertServing(context_coherent=True)).exchange(8)] == ["dispatch"]
        assert back.bytes == out.bytes


@pytest.mark.parametrize(
    ("name", "serving", "deployment", "message"),
    [
        ("meta-llama/Llama-3.1-8B", ExpertServing(cached_experts=1), {}, "no experts"),
        ("Qwen/Qwen3-30B-A3B", ExpertServing(cached_experts=200), {}, "128 experts"),
        ("Qwen/Qwen3-30B-A3B", ExpertServing(cached_experts=2), {"enable_expert_parallel": True}, "spread over ranks"),
        ("Qwen/Qwen3-30B-A3B", ExpertServing(context_coherent=True), {}, "affinity"),
    ],
)
def test_what_cannot_be_served_so(
    name: str, serving: ExpertServing, deployment: dict[str, bool], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        cost_model(model(name), gpu("H200-SXM"), None, Deployment(experts=serving, **deployment))  # type: ignore[arg-type]
