"""What an engine policy is, and the register of those that ship."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import ClassVar

from simulator.core.errors import PolicyError
from simulator.core.registry import Registry
from simulator.native.attributes import mypyc_attr
from simulator.scheduling.args import EngineArgs, Speculation
from simulator.scheduling.request import Request
from simulator.scheduling.state import EngineState
from simulator.scheduling.step import Step


@mypyc_attr(allow_interpreted_subclasses=True)
class Policy:
    """Decides which tokens an engine computes next.

    A policy is constructed with the engine's arguments and keeps no state of its own beyond what its paper's algorithm
    needs: requests, queues and blocks live in the ``EngineState`` it is given. ``schedule`` checks, then mutates.
    Policies derive from this class: what it says about arguments is what they get unless they say otherwise.
    """

    async_by_default: ClassVar[bool] = False
    """Whether ``async_scheduling`` is on where the arguments do not say."""

    prefix_caching: ClassVar[bool | None] = True
    """The same for ``enable_prefix_caching``; None: the policy cannot, as it reserves memory in one piece."""

    pipelines: ClassVar[bool] = False
    """Whether it can plan several batches in flight (``pipeline_parallel_size`` above 1)."""

    speculates: ClassVar[bool] = False
    """Whether running requests may compute drafts too (``speculation``). Each class says so for itself: what derives
    from one that does may plan its steps in another way."""

    elastic: ClassVar[bool] = False
    """Whether it forms groups of the engine's ``prefill_context_parallel_size`` instances (``ElasticPolicy``)."""

    spreads: ClassVar[bool] = False
    """Whether requests that come with KV join the smallest of these batches, not the one that is planned next."""

    keeps: ClassVar[bool] = False
    """Whether it has KV of requests that have ended, and steps to plan when nobody waits or runs."""

    asides: ClassVar[bool] = False
    """Whether requests may wait aside for KV from tiers, and tiers look along its queue. Each class says so for itself,
    as its queue may be its own."""

    unused: ClassVar[frozenset[str]] = frozenset()
    """Arguments that mean nothing to it: setting one is an error."""

    grows: ClassVar[bool] = True
    """Whether decoding takes KV blocks as it goes; False when admission reserves all a request may need."""

    promises: ClassVar[bool] = False
    """Whether admission counts on memory as if no blocks were held for requests on their way here."""

    pads: ClassVar[bool] = False
    """Whether requests stay in its batches after their last token, until others end."""

    holds: ClassVar[bool] = False
    """Whether it asks the state how many blocks a request holds (``blocks_of``), which KV compression may change."""

    def __init__(self, args: EngineArgs) -> None:
        del args

    @classmethod
    def slice_of(cls, args: EngineArgs) -> int:
        """Output tokens after which a request goes back to the router with the rest of its work; 0: it stays."""
        del args
        return 0

    def prepare(self, state: EngineState) -> None:
        """Once, before the first request: choose the waiting queue."""
        del state

    def arrive(self, state: EngineState, request: Request) -> bool:
        """Queue a new request. True when it might be scheduled before anything else changes: a running span of
        decode steps is then cut short, so that the next step can be planned with it."""
        raise NotImplementedError

    def schedule(self, state: EngineState) -> Step | None:
        """Plan the next step; None when there is nothing to compute."""
        raise NotImplementedError


# Arguments that steer chunks and blocks as they are taken: nothing to policies that do without either.
CHUNKING = frozenset(
    {"enable_chunked_prefill", "long_prefill_token_threshold", "scheduler_reserve_full_isl", "watermark"}
)
# Drafts made on the CPU from what the step before accepted: the next step cannot be scheduled while that runs.
SYNCHRONOUS = frozenset({"ngram", "suffix", "medusa", "lookahead"})
POLICIES: Registry[type[Policy]] = Registry("engine policy")


def resolve(args: EngineArgs) -> EngineArgs:
    """The arguments with what is left to the policy filled in.

    Raises PolicyError when the policy is unknown, or an argument is set that it cannot honour.
    """
    policy = POLICIES.get(args.policy)
    if not (isinstance(policy, type) and Policy in policy.__mro__):
        raise PolicyError(
            f"{args.policy!r} is not an engine policy.", remedy="Derive the class from simulator.scheduling.Policy."
        )
    for field in fields(args):
        value = getattr(args, field.name)
        if field.name in policy.unused and value != field.default:
            _refuse(args, f"{field.name} = {value!r}", "means nothing to it", "Leave it out.")
    if args.pipeline_parallel_size > 1 and not policy.pipelines:
        size = f"pipeline_parallel_size = {args.pipeline_parallel_size}"
        _refuse(args, size, "is more than it plans for", "Use tensor_parallel_size, or policy vllm.")
    if args.enable_prefix_caching and policy.prefix_caching is None:
        _refuse(
            args, "enable_prefix_caching", "needs paged KV blocks, it reserves memory in one piece", "Leave it out."
        )
    given = args.async_scheduling, args.enable_prefix_caching
    waits = args.speculation is not None and args.speculation.method in SYNCHRONOUS
    if args.speculation is not None:
        _check_speculation(args, args.speculation, policy)
    return replace(
        args,
        async_scheduling=policy.async_by_default and not waits if given[0] is None else given[0],
        enable_prefix_caching=bool(policy.prefix_caching) if given[1] is None else given[1],
    )


def _check_speculation(args: EngineArgs, speculation: Speculation, policy: type[Policy]) -> None:
    """Raises PolicyError where the engine cannot draft and verify as asked."""
    if not vars(policy).get("speculates"):
        able = ", ".join(name for name, known in POLICIES.items() if vars(known).get("speculates"))
        _refuse(args, "speculative_config", "is more than it plans for", f"Use one of {able}.")
    if args.async_scheduling and speculation.method in SYNCHRONOUS:
        how = f"speculation by {speculation.method}"
        _refuse(args, "async_scheduling", f"does not go with {how}, as in vLLM", "Leave it out.")
    tokens = 1 + speculation.verified(speculation.num_speculative_tokens)
    if args.max_num_seqs * tokens > args.max_num_batched_tokens:
        limit = f"max_num_seqs = {args.max_num_seqs} x {tokens} tokens of each"
        most = args.max_num_batched_tokens // tokens
        _refuse(
            args, limit, f"exceed max_num_batched_tokens = {args.max_num_batched_tokens}", f"Set max_num_seqs: {most}."
        )


def _refuse(args: EngineArgs, what: str, why: str, remedy: str) -> None:
    raise PolicyError(f"engine policy {args.policy!r}: {what} {why}.", remedy=remedy)
