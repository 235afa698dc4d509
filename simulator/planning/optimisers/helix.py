"""Helix: layers of one model on nodes of unlike GPUs, placed for the largest maximum flow (arXiv:2406.01566)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from simulator.core.errors import HardwareError, ScenarioError, UserError
from simulator.cost.nodes import Load, Node, tokens_per_s, way_s
from simulator.cost.placement import Deployment, place, stage_sizes
from simulator.hardware.gpu import NETWORK_LATENCY_S, gpu
from simulator.planning.optimisers.layer_program import Kind, Span, place_layers, swarm_stages
from simulator.planning.optimisers.optimiser import OPTIMISERS, Candidate, Design, Optimiser, Question, Simulated
from simulator.scenario.build import build_groups
from simulator.scenario.cluster import GroupSpec, RouterSpec
from simulator.scenario.config import Scenario
from simulator.scenario.engine import HardwareSpec
from simulator.scenario.nodes import build_node
from simulator.scenario.placement import NodeSpec, PlacementSpec
from simulator.scenario.run import run
from simulator.scenario.setup import build_model, engine_args
from simulator.scenario.spec import Bool, Fraction, Name, Positive, PositiveBytes, PositiveNumber, Seconds, Str, spec
from simulator.scheduling import resolve


@spec
class OfferSpec:
    """Equal nodes to place layers on."""

    gpu: Name
    """Name in the catalogue."""
    count: Positive = 1
    """How many nodes."""
    tensor_parallel_size: Positive = 1
    """GPUs of each."""
    region: Str = ""
    """Where they stand."""


@spec
class Options:
    """Of ``helix``."""

    nodes: Annotated[tuple[OfferSpec, ...], Field(min_length=1)]
    """The cluster."""
    bandwidth: PositiveBytes | None = None
    """Bytes per second that a node sends within its region; null: that of its GPUs' network."""
    latency_s: Seconds = NETWORK_LATENCY_S
    """Of a message within a region."""
    region_bandwidth: PositiveBytes | None = None
    """Bytes per second of the link between any two nodes of different regions, in each direction."""
    region_latency_s: Seconds | None = None
    """Of a message between regions."""
    region: Str = ""
    """Where the coordinator stands."""
    weight_share: Fraction = 0.5
    """Share of a node's memory that its layers may take; the rest is for KV. Separate pipelines take what they need."""
    typical_decodes: Positive | None = None
    """Requests that a node decodes at once, from which its capacity follows; null: those whose KV it holds, times its
    share of the time of a way through all layers."""
    granularity: Positive | None = None
    """Layers that stay together: coarser placements are found sooner. null: as many as the weakest node holds, then
    half of that, and so on down to one, each with its part of the time; the best counts."""
    partial: Bool = True
    """A node may be entered at a later layer than its first."""
    time_limit_s: PositiveNumber = 60.0
    """Of the integer program: the best placement found by then is taken."""
    mip_gap: Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)] = 0.01
    """How near the bound a placement must come to be taken as the best."""
    kv_high_water: Annotated[float, Field(strict=True, gt=0, le=1, allow_inf_nan=False)] = 0.9
    """Share of a node's KV that requests are admitted for."""

    def __post_init__(self) -> None:
        several = len({self.region, *(offer.region for offer in self.nodes)}) > 1
        if several != (self.region_bandwidth is not None) or several != (self.region_latency_s is not None):
            raise ValueError(
                "'region_bandwidth' and 'region_latency_s' go with nodes in several regions, and only there."
            )


@OPTIMISERS.register("helix")
class Helix(Optimiser[Options]):
    """Layers of one model on nodes of unlike GPUs, for the most tokens per second (integer program and maximum flow).

    Decides: which layers each node holds, and with them how much of the flow of requests goes through each link.
    Why it helps: strong nodes hold more layers or stand where weak ones are the bottleneck; cut by kind or into equal
    stages, one or the other waits.
    Limits: a node's capacity is that of typical requests in batches as large as evenly spread requests make; that KV is
    full elsewhere first, and latency, are not in it. Between regions a node's flow is taken to use one link in the
    program; the flow of what it finds counts all links. Candidates beside it: Swarm's equal stages, filled one node
    after the other where the least capacity is, with Swarm's routing; and pipelines of one kind of GPU each.
    Reference: Mei et al., Helix, ASPLOS 2025 (arXiv:2406.01566), section 4, solved by HiGHS. Nodes of a kind in a
    region are alike, so the program counts how many hold which layers instead of naming each: where links carry what a
    node sends, that is the paper's program without its symmetries.
    """

    quantity = "output tokens/s"
    Options = Options

    def search(self) -> Sequence[Candidate]:
        """Helix's placement, then the two others. Raises UserErrors: no kind has the scenario's GPU, nothing fits."""
        scenario = self.question.scenario
        if scenario.hardware.gpu not in {offer.gpu for offer in self.options.nodes}:
            raise UserError(
                f"no node has the scenario's hardware, {scenario.hardware.gpu}.",
                where="options.nodes",
                remedy="Name one of their kinds under scenario.hardware.",
            )
        trace = self.question.trace()
        self.load = Load(
            max(round(float(trace.prompt_tokens.mean())), 1),
            max(round(float(trace.output_tokens.mean())), 1),
            self.options.kv_high_water,
            self.options.typical_decodes,
        )
        self.model = build_model(scenario.model)
        self.layers = self.model.num_layers
        placed = place(self.model, gpu(scenario.hardware.gpu), Deployment(dtype=scenario.model.dtype))
        self.activation_bytes = self.model.hidden_size * placed.dtype_bytes
        kinds = self._kinds()
        found = [self._helix(kinds), self._swarm(kinds), self._separate()]
        return sorted(found, key=lambda one: one.design is None)

    def simulate(self, candidates: Sequence[Candidate]) -> list[Simulated]:
        """Output tokens per second of the scenario's run, as its requests come."""
        question = self.question
        tasks = [(one.design, seed) for one in candidates if one.design for seed in question.seeds]
        values = question.each(_throughput, tasks, "simulated")
        size = len(question.seeds)
        return [Simulated.of(values[at : at + size], question.confidence) for at in range(0, len(values), size)]

    # -- candidates --------------------------------------------------------------------------------------------

    def _helix(self, kinds: Sequence[Kind]) -> Candidate:
        options = self.options
        links = inf if options.region_bandwidth is None else options.region_bandwidth / self.activation_bytes
        units = [options.granularity or max(min(kind.most for kind in kinds), 1)]
        while options.granularity is None and units[-1] > 1:
            units.append(units[-1] // 2)
        tried = [
            place_layers(
                kinds,
                self.layers,
                link_tokens_per_s=links,
                granularity=unit,
                partial=options.partial,
                time_limit_s=options.time_limit_s / len(units),
                mip_gap=options.mip_gap,
            )
            for unit in units
        ]
        placed = [one for one in tried if one is not None]
        if not placed:
            return Candidate("Helix", reason="no placement was found: too few nodes, or too little time.")
        found = max(placed, key=lambda one: one.flow)
        nodes = tuple(_held(self.options.nodes[at], span, count) for (at, span), count in sorted(found.counts.items()))
        return self._candidate("Helix", self._placed(nodes, "flow"))

    def _swarm(self, kinds: Sequence[Kind]) -> Candidate:
        stages = swarm_stages(kinds, self.layers)
        if stages is None:
            return Candidate("Swarm", reason="the weakest node holds no stage that the others can repeat.")
        nodes = tuple(
            _held(self.options.nodes[at], span, stage.count(at))
            for span, stage in stages.items()
            for at in dict.fromkeys(stage)
        )
        return self._candidate("Swarm", self._placed(nodes, "swarm"))

    def _separate(self) -> Candidate:
        """Pipelines of nodes with the same GPUs; kinds that cannot hold the model do nothing."""
        scenario = self.question.scenario
        kinds: dict[HardwareSpec, list[OfferSpec]] = {}
        for offer in self.options.nodes:
            hardware = replace(scenario.hardware, gpu=offer.gpu)
            kinds.setdefault(hardware, []).extend([offer] * offer.count)
        found = (self._pipelines(f"pipelines-{at}", *kind) for at, kind in enumerate(kinds.items()))
        groups = tuple(group for group in found if group is not None)
        if not groups:
            return Candidate("separate pipelines", reason="no kind of nodes holds the model alone.")
        router = RouterSpec(policy="capacity-weighted")
        cluster = replace(scenario.cluster, replicas=1, groups=groups, router=router)
        return self._candidate("separate pipelines", replace(scenario, cluster=cluster))

    def _pipelines(self, name: str, hardware: HardwareSpec, offers: Sequence[OfferSpec]) -> GroupSpec | None:
        """As many pipelines of equal stages as together have the largest flow (one, over several regions); None: all
        these nodes do not hold the model."""
        scenario, best, most = self.question.scenario, None, 0.0
        for count in range(1, len(offers) + 1 if len({offer.region for offer in offers}) == 1 else 2):
            parts = stage_sizes(self.layers, min(len(offers) // count, self.layers))
            ends = np.cumsum(parts).tolist()
            nodes = tuple(
                _held(offer, Span(end - size, end), 1) for offer, size, end in zip(offers, parts, ends, strict=False)
            )
            engine = replace(scenario.engine, placement=self._spec(nodes, "flow"))
            group = GroupSpec(name=name, replicas=count, hardware=hardware, engine=engine)
            try:
                flow = count * self._flow(replace(scenario, cluster=replace(scenario.cluster, groups=(group,))))
            except HardwareError:
                break
            except ScenarioError:  # links that carry nothing
                continue
            if flow > most:
                best, most = group, flow
        return best

    def _candidate(self, label: str, scenario: Scenario) -> Candidate:
        """With the flow that the built scenario has."""
        try:
            flow = self._flow(scenario)
        except UserError as error:
            return Candidate(label, reason=error.message)
        return Candidate(label, flow * self.load.output_tokens / self.load.tokens, design=Design(scenario))

    def _flow(self, scenario: Scenario) -> float:
        """Tokens/s that all replicas are believed to sustain. Raises UserErrors where they cannot be built."""
        built = build_groups(scenario)
        return sum(group.replicas * group.nodes.flow_tokens_per_s for group in built if group.nodes is not None)

    # -- scenarios ---------------------------------------------------------------------------------------------

    def _placed(self, nodes: tuple[NodeSpec, ...], routing: Literal["flow", "swarm"]) -> Scenario:
        scenario = self.question.scenario
        return replace(scenario, engine=replace(scenario.engine, placement=self._spec(nodes, routing)))

    def _spec(self, nodes: tuple[NodeSpec, ...], routing: Literal["flow", "swarm"]) -> PlacementSpec:
        options = self.options
        several = len({options.region, *(node.region for node in nodes)}) > 1
        return PlacementSpec(
            nodes=nodes,
            routing=routing,
            bandwidth=options.bandwidth,
            latency_s=options.latency_s,
            region_bandwidth=options.region_bandwidth if several else None,
            region_latency_s=options.region_latency_s if several else None,
            region=options.region,
            kv_high_water=options.kv_high_water,
            expected_output_tokens=self.load.output_tokens,
            typical_prompt_tokens=self.load.prompt_tokens,
            typical_decodes=options.typical_decodes,
        )

    # -- nodes -------------------------------------------------------------------------------------------------

    def _kinds(self) -> list[Kind]:
        """What nodes of each kind compute with so many layers."""
        built = [self._sizes(offer) for offer in self.options.nodes]
        largest = [
            sizes[-1]
            for sizes, offer in zip(built, self.options.nodes, strict=True)
            for _ in range(offer.count)
            if sizes
        ]
        if not largest:
            return [Kind(offer.count, offer.region, (0.0,)) for offer in self.options.nodes]
        around = way_s(largest, self.load, self.layers)
        return [
            Kind(offer.count, offer.region, (0.0, *(self._rate(node, around) for node in sizes)))
            for offer, sizes in zip(self.options.nodes, built, strict=True)
        ]

    def _rate(self, node: Node, around: float) -> float:
        return min(tokens_per_s(node, self.load, around), node.bandwidth / self.activation_bytes)

    def _sizes(self, offer: OfferSpec) -> list[Node]:
        """One of these nodes with 1, 2, ... layers amid the model, as long as they fit at either end of it too."""
        own = replace(self.question.scenario, hardware=replace(self.question.scenario.hardware, gpu=offer.gpu))
        args = resolve(engine_args(own, self.model, gpu(offer.gpu)))
        found: list[Node] = []
        for k in range(1, self.layers + 1):
            amid = (self.layers - k) // 2
            try:
                for first in (0, self.layers - k, amid):
                    held = _held(offer, Span(first, first + k), 1)
                    node, memory = build_node(own, self._spec((held,), "flow"), held, args, self.model)
                    if memory.weight_bytes > self.options.weight_share * memory.total_bytes:
                        return found
            except HardwareError:
                return found
            found.append(node)
        return found


def _held(offer: OfferSpec, span: Span, count: int) -> NodeSpec:
    return NodeSpec(
        layers=(span.first, span.end),
        gpu=offer.gpu,
        count=count,
        tensor_parallel_size=offer.tensor_parallel_size,
        region=offer.region,
    )


def _throughput(task: tuple[Question, tuple[Design, int]]) -> float:
    question, (design, seed) = task

    def make() -> dict[str, float]:
        return {"value": float(run(design.scenario, seed).summary["throughput"]["output_tokens_per_s"])}

    return float(question.once("helix", design, seed, make)["value"])
