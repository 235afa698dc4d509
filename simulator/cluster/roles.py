"""Whether the groups of a disaggregated cluster can play their roles, and for which requests."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.candidates import Candidates
from simulator.cluster.plan import ClusterPlan, DisaggregationPlan, Group
from simulator.core.errors import ScenarioError
from simulator.scheduling import POLICIES
from traces.trace import Trace


def unserved(cluster: ClusterPlan, trace: Trace, prefill: Candidates, decode: Candidates) -> NDArray[np.bool_]:
    """Rows that no replicas could ever serve, alone or one after the other."""
    plan = cluster.disaggregation
    assert plan is not None
    short = trace.prompt_tokens < plan.min_prompt_tokens
    nobody: NDArray[np.bool_] = np.where(short, decode.nobody, prefill.nobody)
    return nobody


def check_roles(cluster: ClusterPlan, plan: DisaggregationPlan) -> None:
    """Raises ScenarioError when requests could not be handed on."""
    where = "cluster.disaggregation"
    roles = {group.role for group in cluster.groups}
    if not {"prefill", "decode"} <= roles and not ("prefill" in roles and "both" in roles):
        raise ScenarioError(
            "disaggregation needs a group with role prefill and one that decodes.",
            where=where,
            remedy="Give groups under cluster.groups the roles prefill and decode.",
        )
    if plan.layerwise and not plan.push:
        raise ScenarioError(
            "a transfer layer by layer needs the decode replica before the prompt is computed.",
            where=f"{where}.layerwise",
            remedy="Set transfer: push, or layerwise: false.",
        )
    if cluster.topology is None:
        raise ScenarioError("the cluster has no topology to send KV over.", where=where)
    for group in cluster.groups:
        if group.kv is None:
            raise ScenarioError(f"group {group.name} does not say how large its KV is.", where=where)
        fault = _unfit(group, plan)
        if fault:
            remedy = "Use engine policy vllm, sarathi or fastgen there."
            raise ScenarioError(
                f"group {group.name}: engine policy {group.args.policy!r} {fault}.", where=where, remedy=remedy
            )
    if plan.min_prompt_tokens and cluster.admission is not None:
        raise ScenarioError(
            "admission rules look at requests on their way to prefill replicas, which short prompts do not take.",
            where=f"{where}.min_prompt_tokens",
            remedy="Leave min_prompt_tokens or cluster.admission out.",
        )


def _unfit(group: Group, plan: DisaggregationPlan) -> str:
    """Why an engine policy cannot play its group's role; empty: it can."""
    policy = group.args.policy
    if POLICIES.get(policy).promises:
        return "promises memory to requests as if no blocks were held for others"
    if POLICIES.get(policy).keeps:
        return "keeps the KV of turns that have ended for the turns after them"
    if group.role == "prefill":
        return ""
    if not POLICIES.get(policy).grows:
        return "reserves memory when it admits a request, which KV from elsewhere does not pass"
    if policy == "vllm-v0" and plan.first_token != "prefill":  # noqa: S105 - not that kind of token
        return "computes whole prompts only, not the last token of one"
    return ""
