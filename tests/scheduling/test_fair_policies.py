"""Fair policies: what tenants with requests waiting get, to the token."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simulator.cluster.plan import single
from simulator.cluster.simulation import Simulation
from simulator.core.errors import PolicyError
from simulator.cost.analytic import FixedCost, LinearCost
from simulator.replica.records import SimulationRecords
from simulator.scheduling import EngineArgs, EngineState, Step
from tests.scheduling.invariants import check
from tests.scheduling.test_policies import GPU, makespan, serve
from traces.trace import Labels, Trace

NAMES = ("a", "b", "c")


class Service:
    """Watches what each tenant is served, in weighted tokens, and the spread between any two that both wait."""

    def __init__(self, weights: tuple[float, ...] = (1.0, 1.0, 1.0)) -> None:
        self.weights = weights
        self.served: dict[int, float] = defaultdict(float)
        self.seen: set[int] = set()
        self.range: dict[tuple[int, int], tuple[float, float]] = {}  # of the difference, while both wait
        self.worst = 0.0

    def settled(self, now: float, state: EngineState) -> None:
        waiting = {request.tenant for request in state.waiting}  # type: ignore[attr-defined]
        for f in range(len(NAMES)):
            for g in range(f):
                if f in waiting and g in waiting:
                    gap = self.served[f] / self.weights[f] - self.served[g] / self.weights[g]
                    low, high = self.range.get((f, g), (gap, gap))
                    self.range[f, g] = low, high = min(low, gap), max(high, gap)
                    self.worst = max(self.worst, high - low)
                else:
                    self.range.pop((f, g), None)

    def planned(self, now: float, begin: float, step: Step, state: EngineState) -> None:
        for request in step.admitted:
            if request.row not in self.seen:
                self.seen.add(request.row)
                self.served[request.tenant] += request.prompt_tokens
        if step.decodes:
            for request in state.running:
                if request.decoding and request not in step.held:
                    self.served[request.tenant] += 2
        for request in step.completed:
            self.served[request.tenant] += 2


def watched(trace: Trace, args: EngineArgs, blocks: int, service: Service) -> SimulationRecords:
    run = Simulation(trace, single(args, LinearCost(0.01, 1e-4, 1e-5, 1e-6), blocks), step_mode=True)
    run.replicas[0].engine.observer = service
    records = run.run()
    check(records, trace, run.replicas[0].engine.state)
    return records


@st.composite
def mixes(draw: st.DrawFn) -> Trace:
    n = draw(st.integers(2, 60))
    prompt = draw(st.lists(st.integers(1, 60), min_size=n, max_size=n))
    output = draw(st.lists(st.integers(1, 40), min_size=n, max_size=n))
    gaps = draw(st.lists(st.sampled_from([0.0, 0.0, 0.0, 0.02, 0.1, 1.0]), min_size=n, max_size=n))
    tenants = draw(st.lists(st.integers(0, 2), min_size=n, max_size=n))
    return Trace(np.cumsum(gaps), np.array(prompt), np.array(output), tenant=Labels(np.array(tenants), NAMES))


class TestVtc:
    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(trace=mixes(), blocks=st.integers(101, 220), seqs=st.integers(1, 8), sync=st.booleans())
    def test_the_bound_holds_for_any_trace(self, trace: Trace, blocks: int, seqs: int, sync: bool) -> None:
        """Theorem 4.4: between two tenants that wait all the while, service differs by at most
        2 max(w_p L_input, w_q M), with M the tokens that the KV cache holds."""
        service = Service()
        args = EngineArgs(
            policy="vtc", block_size=1, max_num_seqs=seqs, max_num_batched_tokens=64, max_model_len=101,
            async_scheduling=not sync,
        )  # fmt: skip
        watched(trace, args, blocks, service)
        assert service.worst <= 2 * max(int(trace.prompt_tokens.max()), 2 * (blocks - 1))

    @pytest.mark.parametrize(("policy", "within"), [("vtc", True), ("vllm", False)])
    def test_first_come_first_served_breaks_it(self, policy: str, within: bool) -> None:
        service = Service()
        args = EngineArgs(policy=policy, block_size=1, max_num_seqs=8, max_num_batched_tokens=64, max_model_len=120)
        watched(self.two(200), args, 201, service)
        assert (service.worst <= 2 * 2 * 200) == within

    def two(self, n: int = 400) -> Trace:
        """Tenant a asks for far more than its share, tenant b for a bit more than half of what there is."""
        rng = np.random.default_rng(0)
        tenant = np.r_[np.zeros(3 * n, dtype=np.int32), np.ones(n, dtype=np.int32)]
        arrival = np.r_[np.arange(3 * n) * 0.01, np.arange(n) * 0.03]
        order = np.argsort(arrival, kind="stable")
        lengths = rng.integers(20, 60, (2, 4 * n))
        return Trace(arrival[order], lengths[0], lengths[1], tenant=Labels(tenant[order], ("a", "b")))

    def shares(self, policy: str, until: float, **options: object) -> float:
        """Service of b over that of a, by requests finished while both wait."""
        trace = self.two()
        records = serve(trace, policy, max_num_seqs=8, options=options)
        assert trace.tenant is not None
        done = records.requests.finish < until
        tokens = trace.prompt_tokens + 2 * trace.output_tokens
        a, b = (tokens[done & (trace.tenant.codes == code)].sum() for code in (0, 1))
        return float(b / a)

    def test_a_greedy_tenant_gets_its_share_and_no_more(self) -> None:
        assert self.shares("vllm", 12.0) == pytest.approx(1 / 3, rel=0.15)  # first come, first served: by what they ask
        assert self.shares("vtc", 12.0) == pytest.approx(1.0, rel=0.05)
        assert self.shares("drr", 12.0, quantum=200.0) == pytest.approx(1.0, rel=0.08)

    def test_weights_are_shares(self) -> None:
        assert self.shares("vtc", 12.0, weights="2, 1") == pytest.approx(1 / 2, rel=0.08)
        assert self.shares("drr", 12.0, weights="2, 1", quantum=200.0) == pytest.approx(1 / 2, rel=0.1)

    def test_it_wastes_nothing(self) -> None:
        trace = self.two()
        fair, fcfs = (makespan(serve(trace, policy, max_num_seqs=8)) for policy in ("vtc", "vllm"))
        assert fair == pytest.approx(fcfs, rel=0.03)

    def test_one_tenant_is_first_come_first_served(self) -> None:
        rng = np.random.default_rng(1)
        arrival, lengths = np.cumsum(rng.exponential(0.05, 200)), rng.integers(1, 300, (2, 200))
        alone = Trace(arrival, *lengths)
        expected = serve(alone, "vllm", max_num_seqs=8).requests.finish
        for policy in ("vtc", "drr"):
            np.testing.assert_array_equal(serve(alone, policy, max_num_seqs=8).requests.finish, expected)

    def test_idling_saves_nothing_up(self) -> None:
        """Tenant b comes back after ten seconds in which a was served alone: from then on both get the same."""
        n = 600
        rng = np.random.default_rng(2)
        arrival = np.r_[np.zeros(2 * n), np.full(n, 10.0)]
        tenant = Labels(np.r_[np.zeros(2 * n, np.int32), np.ones(n, np.int32)], ("a", "b"))
        lengths = rng.integers(20, 60, (2, 3 * n))
        trace = Trace(arrival, lengths[0], lengths[1], tenant=tenant)
        requests = serve(trace, "vtc", GPU, max_num_seqs=8).requests
        window = (requests.finish > 10.5) & (requests.finish < 14.0)
        tokens = (trace.prompt_tokens + 2 * trace.output_tokens) * window
        a, b = tokens[: 2 * n].sum(), tokens[2 * n :].sum()
        assert a == pytest.approx(b, rel=0.1)

    def test_weights_are_checked(self) -> None:
        trace = Trace(np.zeros(1), np.array([8]), np.array([8]))
        with pytest.raises(PolicyError, match="option 'weights' is '1, -2'"):
            serve(trace, "vtc", FixedCost(0.01, 0.0), options={"weights": "1, -2"})
