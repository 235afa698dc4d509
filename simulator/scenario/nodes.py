"""Nodes of ``engine.placement``, built: memory and prices of each, the flow through them, the way routes are chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from functools import partial
from math import inf

from simulator.core.errors import HardwareError, ScenarioError
from simulator.cost.calibration import choose
from simulator.cost.memory import MemoryPlan
from simulator.cost.nodes import COORDINATOR, Load, Node, Wires, hops, max_flow, tokens_per_s, way_s
from simulator.hardware.gpu import Gpu, gpu
from simulator.model.architecture import LinearAttention, Model
from simulator.replica.nodes import NodesPlan
from simulator.replica.routes import FlowRoutes, QueueRoutes, Routes, SwarmRoutes
from simulator.scenario.config import Scenario
from simulator.scenario.engine import EngineSpec
from simulator.scenario.load import at
from simulator.scenario.placement import NodeSpec, PlacementSpec
from simulator.scenario.prices import build_cost, plan_memory
from simulator.scheduling.args import EngineArgs

# Engine arguments that mean something to nodes; the others are refused.
USED = {
    "placement",
    "policy",
    "enforce_eager",
    "max_cudagraph_capture_size",
    "overhead",
    "max_num_seqs",
    "max_num_batched_tokens",
    "max_model_len",
    "block_size",
    "gpu_memory_utilization",
    "enable_prefix_caching",
    "async_scheduling",
}


@dataclass(frozen=True)
class Placed:
    """Nodes, built. tightest: memory of the node that holds the KV of fewest tokens; ``num_gpus`` is that of all."""

    plan: NodesPlan
    tightest: MemoryPlan
    num_gpus: int
    usd_per_hour: float | None
    kv_blocks: int  # of all nodes together, as if each held all layers


def build_nodes(scenario: Scenario, placement: PlacementSpec, args: EngineArgs, served: Model) -> Placed:
    """Raises UserErrors whose ``where`` names the field."""
    with at("engine"):
        _check_engine(scenario.engine)
    _check_scenario(scenario, served)
    built: list[Node] = []
    memories: list[MemoryPlan] = []
    prices: list[float | None] = []
    for index, node in enumerate(placement.nodes):
        with at(f"engine.placement.nodes.{index}.gpu"):
            card = _card(scenario, node)
        with at(f"engine.placement.nodes.{index}"):
            one, memory = build_node(scenario, placement, node, args, served)
        built += [one] * node.count
        memories += [memory] * node.count
        given = scenario.hardware.price_per_gpu_hour
        each = given if given is not None else card.price(scenario.hardware.pricing)
        prices += [None if each is None else each * node.tensor_parallel_size] * node.count
    with at("engine.placement"):
        plan = _plan(placement, built, served)
        own = gpu(scenario.hardware.gpu).name
        if all(node.gpu != own for node in built):
            raise ScenarioError(
                f"no node has the scenario's hardware, {scenario.hardware.gpu}.",
                where="nodes",
                remedy="Name the GPU of one of them under 'hardware'.",
            )
    slots = sum(one.kv_slots for one in built)
    known = [price for price in prices if price is not None]
    return Placed(
        plan,
        min(memories, key=lambda memory: memory.kv_tokens),
        sum(one.num_gpus for one in built),
        sum(known) if len(known) == len(prices) else None,
        slots // (served.num_layers * args.block_size) + 1,
    )


def _card(scenario: Scenario, node: NodeSpec) -> Gpu:
    found = gpu(node.gpu or scenario.hardware.gpu)
    return found if scenario.cluster.network is None else scenario.cluster.network.card(found)


def build_node(
    scenario: Scenario, placement: PlacementSpec, node: NodeSpec, args: EngineArgs, served: Model
) -> tuple[Node, MemoryPlan]:
    """One node and where its memory goes. Raises HardwareError where its layers do not fit."""
    engine = replace(scenario.engine, tensor_parallel_size=node.tensor_parallel_size)
    scenario, card = replace(scenario, engine=engine), _card(scenario, node)
    memory = plan_memory(scenario, args, served, card, layers=node.layers)
    calibration = choose(scenario.hardware.calibration, card)
    cost = build_cost(scenario, args, served, card, calibration, layers=node.layers)
    first, end = node.layers
    slots = (memory.num_gpu_blocks - 1) * args.block_size * (end - first)
    bandwidth = placement.bandwidth or card.network.bandwidth * node.tensor_parallel_size
    return Node(card.name, node.tensor_parallel_size, first, end, node.region, slots, cost, bandwidth), memory


def _plan(placement: PlacementSpec, nodes: Sequence[Node], served: Model) -> NodesPlan:
    """Raises ScenarioError where there is no way through the layers, or a node that no way goes through."""
    ways = hops(nodes, served.num_layers)
    if not ways[COORDINATOR]:
        raise ScenarioError(
            f"the nodes hold no way through the {served.num_layers} layers of {served.name}.",
            where="nodes",
            remedy="Every layer after the first must follow the end of a node, on one that holds it.",
        )
    reached = {j for after in ways.values() for j in after}
    for index, node in enumerate(nodes):
        if index not in reached or not ways[index]:
            raise ScenarioError(
                f"no way goes through the node with layers {node.first} to {node.end - 1}.",
                where="nodes",
                remedy="Leave it out, or let other nodes end before and begin after its layers.",
            )
    load = Load(
        placement.typical_prompt_tokens,
        placement.expected_output_tokens,
        placement.kv_high_water,
        placement.typical_decodes,
    )
    wires = Wires(
        placement.latency_s,
        inf if placement.region_bandwidth is None else placement.region_bandwidth,
        placement.region_latency_s or 0.0,
        placement.region,
    )
    around = way_s(nodes, load, served.num_layers)
    rates = [tokens_per_s(node, load, around) for node in nodes]
    activation = float(served.hidden_size * nodes[0].cost.placed.dtype_bytes)
    flow = max_flow(nodes, rates, wires, activation, served.num_layers)
    if not flow.tokens_per_s:
        raise ScenarioError(
            "the links between the nodes carry less than a thousandth of a token per second.",
            where="bandwidth" if placement.region_bandwidth is None else "region_bandwidth",
            remedy="Give bytes per second.",
        )
    routes: Callable[[], Routes]
    if placement.routing == "flow":
        routes = partial(FlowRoutes, nodes, ways, served.num_layers, flow.edges)
    elif placement.routing == "swarm":
        routes = partial(SwarmRoutes, nodes, ways, served.num_layers)
    else:
        routes = partial(QueueRoutes, nodes, ways, served.num_layers, rates)
    return NodesPlan(
        tuple(nodes),
        served.num_layers,
        wires,
        routes,
        activation,
        placement.kv_high_water,
        placement.expected_output_tokens,
        flow.tokens_per_s,
    )


def _check_engine(engine: EngineSpec) -> None:
    """Raises ScenarioError where an argument would be ignored."""
    for known in fields(engine):
        default = known.default_factory() if known.default_factory is not MISSING else known.default
        value = getattr(engine, known.name)
        if known.name not in USED and value != default:
            raise ScenarioError(
                f"nodes of a placement do without {known.name}.",
                where=known.name,
                remedy="Leave it out, or 'placement'.",
            )
    if engine.policy != "vllm":
        raise ScenarioError(
            f"nodes batch what waits there, in order: engine policy {engine.policy!r} has no say.",
            where="policy",
            remedy="Leave it out.",
        )
    if engine.enable_prefix_caching:
        raise ScenarioError(
            "prefixes are not kept on nodes: the next request may take another route.",
            where="enable_prefix_caching",
            remedy="Set it to false, or leave it out.",
        )


def _check_scenario(scenario: Scenario, served: Model) -> None:
    hardware = scenario.hardware
    for name, given in (
        ("hardware.host", hardware.host is not None),
        ("model.kv_compression", scenario.model.kv_compression is not None),
        ("energy.carbon", scenario.energy.carbon is not None),
    ):
        if given:
            raise ScenarioError(f"{name} is not modelled for nodes of a placement.", where=name, remedy="Leave it out.")
    if any(x.attention.sliding_window or isinstance(x.attention, LinearAttention) for x in served.layers):
        raise HardwareError(
            f"{served.name} has layers with a window or a recurrent state, whose KV is not counted on nodes.",
            where="model",
            remedy="Use pipeline_parallel_size, or a model whose layers keep all KV.",
        )
