"""DistServe's placement: prefill and decode instances by goodput per GPU, then as many as the rate needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Annotated, Literal

from pydantic import Field

from simulator.core.errors import UserError
from simulator.planning.optimisers.optimiser import OPTIMISERS, Candidate, Optimiser, Simulated
from simulator.planning.optimisers.phases import Side, answers_alone, check_limits, prompts_alone, split
from simulator.scenario.config import Scenario
from simulator.scenario.network import NetworkSpec
from simulator.scenario.spec import Positive, PositiveNumber, spec

Sizes = Annotated[tuple[Positive, ...], Field(min_length=1)]


@spec
class Options:
    """Of ``distserve``."""

    rate: PositiveNumber
    """Requests per second to serve."""
    tensor_parallel_sizes: Sizes = (1, 2, 4, 8)
    """Tried for either side."""
    pipeline_parallel_sizes: Sizes = (1, 2)
    """Tried for either side."""
    gpus_per_instance: Positive = 8
    """Most GPUs of an instance."""
    affinity: Literal["high", "low"] = "high"
    """high: KV moves fast between nodes, instances go anywhere (algorithm 1). low: the two sides of a pair share nodes,
    stage by stage (algorithm 2)."""
    gpus_per_node: Positive = 8
    """Of affinity low: what a stage's two halves share."""


@dataclass(frozen=True)
class Instance:
    """One side's configuration and what it sustains by itself, requests/s."""

    side: Side
    rate: float

    @property
    def label(self) -> str:
        engine = self.side.engine
        pipeline = f" x PP{engine.pipeline_parallel_size}" if engine.pipeline_parallel_size > 1 else ""
        return f"TP{engine.tensor_parallel_size}{pipeline}"

    @property
    def per_gpu(self) -> float:
        return self.rate / self.side.num_gpus


@OPTIMISERS.register("distserve")
class DistServe(Optimiser[Options]):
    """Parallelism of prefill and decode instances by their goodput per GPU, then as many of each as the rate needs.

    Decides: tensor and pipeline parallel sizes of either side, each by simulations of its phase alone, and how many
    instances serve ``rate``. With affinity low, sides of equal pipelines are paired one to one so that KV stays inside
    nodes, and pairs are replicated.
    Why it helps: TTFT wants other parallelism than TPOT, and the sides' instances need not be equally many.
    Limits: it believes in the smaller side's rate: nobody waits for a transfer, for KV on the other side, or for a
    router that picks badly, nor do several replicas even out bursts. Candidates beside the first are the other pairs,
    by how few GPUs they are believed to need.
    Reference: Zhong et al., DistServe, OSDI 2024 (arXiv:2401.09670), algorithms 1 and 2.
    """

    Options = Options

    def search(self) -> Sequence[Candidate]:
        """Pairs of configurations. Raises UserErrors: no limits of TTFT and TPOT, or a side that nothing serves."""
        check_limits(self.question)
        sides, reasons = self._sides(), []
        found: list[list[Instance]] = []
        for measure in (prompts_alone, answers_alone):
            rates = measure(self.question, sides)
            reasons += [Candidate(Instance(side, 0.0).label, reason=one.reason)
                        for side, one in zip(sides, rates, strict=True) if one.reason and not found]  # fmt: skip
            found.append([Instance(side, one.value) for side, one in zip(sides, rates, strict=True) if one.value > 0])
        if not all(found):
            what = "prompts" if not found[0] else "answers"
            raise UserError(f"no configuration serves {what} within the SLO.", remedy="Loosen the SLO, or add GPUs.")
        pairs = self._pairs(*found)
        return [*(self._candidate(*pair) for pair in pairs), *reasons]

    @property
    def goal(self) -> str:
        return "goodput per GPU, no more of it than the rate"

    def worth(self, candidate: Candidate, simulated: Simulated) -> float:
        """Goodput per GPU, no more of it than the rate."""
        return min(simulated.value, self.options.rate) / float(candidate.columns["gpus"])

    def _sides(self) -> list[Side]:
        options, base = self.options, self.question.scenario
        return [
            Side(base.hardware, replace(base.engine, tensor_parallel_size=tp, pipeline_parallel_size=pp))
            for pp, tp in product(options.pipeline_parallel_sizes, options.tensor_parallel_sizes)
            if tp * pp <= options.gpus_per_instance
        ]

    def _pairs(self, prompts: list[Instance], answers: list[Instance]) -> list[tuple[Instance, int, Instance, int]]:
        """(prefill configuration, how many, decode configuration, how many), the paper's choice first."""
        rate, pairs = self.options.rate, []
        for one, other in product(prompts, answers):
            if self.options.affinity == "high":
                counts = math.ceil(rate / one.rate - 1e-9), math.ceil(rate / other.rate - 1e-9)
                least = -min(one.per_gpu, other.per_gpu), -one.per_gpu - other.per_gpu
                first = one is max(prompts, key=_per_gpu) and other is max(answers, key=_per_gpu)
            else:
                if not self._shares_nodes(one, other):
                    continue
                both = min(one.rate, other.rate)
                counts = (math.ceil(rate / both - 1e-9),) * 2
                least = (-both / (one.side.num_gpus + other.side.num_gpus), 0.0)
                first = False
            gpus = counts[0] * one.side.num_gpus + counts[1] * other.side.num_gpus
            key = (not first, *((gpus, *least) if self.options.affinity == "high" else (*least, gpus)))
            pairs.append((key, (one, counts[0], other, counts[1])))
        return [pair for _, pair in sorted(pairs, key=lambda ranked: ranked[0])]

    def _shares_nodes(self, one: Instance, other: Instance) -> bool:
        """Whether a stage of both fits a node."""
        mine, its = one.side.engine, other.side.engine
        together = mine.tensor_parallel_size + its.tensor_parallel_size
        return mine.pipeline_parallel_size == its.pipeline_parallel_size and together <= self.options.gpus_per_node

    def _candidate(self, one: Instance, many: int, other: Instance, several: int) -> Candidate:
        label = f"{many} x {one.label} for prompts, {several} x {other.label} for answers"
        gpus = many * one.side.num_gpus + several * other.side.num_gpus
        belief = min(many * one.rate, several * other.rate)
        columns = {
            "gpus": gpus, "prompts_per_gpu": one.per_gpu, "answers_per_gpu": other.per_gpu, "per_gpu": belief / gpus
        }  # fmt: skip
        scenario = self._placed(split(self.question.scenario, one.side, many, other.side, several))
        return Candidate(label, belief, columns, self.question.design(scenario, self.options.rate))

    def _placed(self, scenario: Scenario) -> Scenario:
        if self.options.affinity == "high":
            return scenario
        network = replace(scenario.cluster.network or NetworkSpec(), placement="interleaved")
        return replace(scenario, cluster=replace(scenario.cluster, network=network))


def _per_gpu(one: Instance) -> float:
    return one.per_gpu
