"""Prompts and answers by themselves: what an engine sustains of either, when the other side never makes it wait.

DistServe's search places instances by it: the rate of a split cluster is believed to be the smaller of its two sides'
(arXiv:2401.09670, section 4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from simulator.core.errors import UserError
from simulator.planning.bounds import load_for, seconds_per_request
from simulator.planning.optimisers.optimiser import Design, Question, Simulated
from simulator.planning.runs import WORKSHOP
from simulator.scenario.cluster import GroupSpec
from simulator.scenario.config import Scenario, SloSpec
from simulator.scenario.engine import EngineSpec, HardwareSpec


@dataclass(frozen=True)
class Side:
    """An engine and what it runs on."""

    hardware: HardwareSpec
    engine: EngineSpec

    @property
    def num_gpus(self) -> int:
        return self.engine.tensor_parallel_size * self.engine.pipeline_parallel_size


def check_limits(question: Question) -> None:
    """Raises UserError where the SLO says nothing of one of the sides."""
    slo = question.slo
    if slo.ttft_s is None or slo.tpot_s is None:
        raise UserError(
            "prompts and answers by themselves need limits of their own.", remedy="Give the SLO both ttft_s and tpot_s."
        )


def prompts_alone(question: Question, sides: Sequence[Side]) -> list[Simulated]:
    """Requests/s whose prompts each side's engine computes within the TTFT limit. Raises UserError: no such limits."""
    check_limits(question)
    trace, slo = question.trace(), question.slo
    first = replace(trace, output_tokens=np.ones_like(trace.output_tokens))
    limits = SloSpec(ttft_s=slo.ttft_s, percentile=slo.percentile)
    designs = [Design(replace(alone(question.scenario, side), slo=limits), first) for side in sides]
    return question.sustained(designs, "prompts alone")


def answers_alone(question: Question, sides: Sequence[Side]) -> list[Simulated]:
    """Requests/s whose answers each side's engine decodes within the TPOT limit, behind as many engines of its kind for
    prompts as never to wait for one."""
    check_limits(question)
    return question.sustained([_behind_plenty(question, side) for side in sides], "answers alone")


def alone(scenario: Scenario, side: Side) -> Scenario:
    """One replica that computes both."""
    cluster = replace(scenario.cluster, replicas=1, groups=(), disaggregation=None)
    return replace(scenario, hardware=side.hardware, engine=side.engine, cluster=cluster)


def split(scenario: Scenario, prompts: Side, many: int, answers: Side, several: int) -> Scenario:
    """A cluster whose prompts and answers have replicas of their own."""
    groups = (
        GroupSpec(name="prompts", role="prefill", replicas=many, hardware=prompts.hardware, engine=prompts.engine),
        GroupSpec(name="answers", role="decode", replicas=several, hardware=answers.hardware, engine=answers.engine),
    )
    cluster = replace(scenario.cluster, replicas=1, groups=groups)
    return replace(scenario, hardware=prompts.hardware, engine=prompts.engine, cluster=cluster)


def _behind_plenty(question: Question, side: Side) -> Design:
    slo, requests = question.slo, question.trace()
    try:
        (setup,) = WORKSHOP.groups(alone(question.scenario, side))
        per_prompt, per_answer = seconds_per_request(setup, load_for(setup, requests))
        plenty = max(2, min(256, math.ceil(4.0 * per_prompt / max(per_answer, 1e-9))))
    except UserError:
        plenty = 1  # it does not fit; whoever builds it says so
    limits = SloSpec(tpot_s=slo.tpot_s, percentile=slo.percentile)
    return Design(replace(split(question.scenario, side, plenty, side, 1), slo=limits), requests)
