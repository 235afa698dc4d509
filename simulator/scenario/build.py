"""The cluster of a scenario, built from its engines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from simulator.cluster.plan import ClusterPlan, Group, RouterPlan
from simulator.routing import ROUTERS
from simulator.scenario import interconnect, sharing
from simulator.scenario.cluster import GroupSpec
from simulator.scenario.config import Scenario
from simulator.scenario.front import front_plan
from simulator.scenario.kv import check_pauses
from simulator.scenario.life import Kind, build_clocks, build_life
from simulator.scenario.load import at, within
from simulator.scenario.setup import Setup, build, draft_kv_bytes, profile_of, step_cost, work_per_s


def build_groups(scenario: Scenario) -> tuple[Setup, ...]:
    """One ``Setup`` per group of replicas. Raises UserErrors like ``build``."""
    specs = scenario.cluster.groups
    if not specs:
        return (replace(build(scenario), replicas=scenario.cluster.replicas),)
    built = []
    for index, spec in enumerate(specs):
        own = {name: value for name in ("model", "hardware", "engine") if (value := getattr(spec, name)) is not None}
        with within(f"cluster.groups.{index}", own):
            setup = build(replace(scenario, **own), spec)
        built.append(replace(setup, name=spec.name, replicas=spec.replicas))
    return sharing.on_shared_gpus(specs, built)


def build_cluster(scenario: Scenario, setups: Sequence[Setup]) -> ClusterPlan:
    """The cluster of these groups, ready to simulate."""
    specs = scenario.cluster.groups or (GroupSpec(name="replicas"),)
    speeds = [work_per_s(setup) for setup in setups]
    groups = tuple(
        Group(
            setup.args,
            step_cost(setup) if scenario.cluster.clocks is None else setup.cost,
            setup.num_gpu_blocks,
            setup.args.max_model_len,
            name=setup.name,
            count=setup.replicas,
            role=spec.role,
            weight=spec.weight if spec.weight is not None else speed / speeds[0],
            watts=(float(setup.power.watts(32)) - setup.power.idle_w) * setup.num_gpus,
            model=spec.serves,
            kv=interconnect.kv_bytes(setup.model, setup.cost.placed, draft_kv_bytes(setup)),
            power=None if scenario.cluster.clocks is None else setup.power,
            gpu=setup.gpu.name,
            num_gpus=setup.num_gpus,
            tiers=setup.tiers,
            shares=spec.shares,
            lora=setup.lora,
            nodes=setup.nodes,
            holding=setup.holding,
            lends=spec.lends,
            parallel_chunks=(spec.engine or scenario.engine).parallel_chunks,
        )
        for setup, spec, speed in zip(setups, specs, speeds, strict=True)
    )
    router, handover = scenario.cluster.router, scenario.cluster.disaggregated
    kinds = [Kind(s.name, s.replicas, s.args, s.memory, s.gpu, profile_of(s)) for s in setups]
    life = build_life(scenario.cluster, kinds, scenario.seed)
    ways, migration = None, scenario.cluster.migration
    if handover is not None or migration is not None:
        engines = [interconnect.Engine(setup.model, setup.gpu, setup.cost.placed) for setup in setups]
        interconnect.check_same_kv(groups, engines, "cluster.groups")
        places = [g.count for g in groups] if life is None else [g.max_replicas for g in life.groups]
        ways = interconnect.topology(scenario.cluster.network, groups, engines, places)
    if handover is not None:
        with at("cluster.disaggregation.decode_router.policy"):
            ROUTERS.get(handover.decode_router.policy)
    with at("cluster.router.policy"):
        ROUTERS.get(router.policy)
    admission, slo = scenario.cluster.admission, setups[0].slo
    plan = ClusterPlan(
        groups,
        RouterPlan(router.policy, router.options, router.metrics_interval_s),
        disaggregation=None if handover is None else handover.plan(),
        migration=None if migration is None else migration.plan(),
        topology=ways,
        admission=None if admission is None else admission.plan(None if slo is None else slo.ttft_s),
        life=life,
        clocks=build_clocks(scenario.cluster.clocks, [setup.name for setup in setups], profile_of(setups[0])),
        front=front_plan(scenario.cluster.response_cache, scenario.cluster.retrieval_s),
    )
    interconnect.check(plan)
    check_pauses(plan)
    return plan
