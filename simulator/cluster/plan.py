"""What a cluster is made of: groups of equal replicas, and the policies between them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from simulator.cluster.admission import Admission
from simulator.cluster.elastic import LifePlan
from simulator.cluster.front import FrontPlan
from simulator.cluster.transfers import KvBytes
from simulator.cost.interface import StepCost
from simulator.cost.power import PowerModel
from simulator.hardware.topology import Topology
from simulator.kv.tiers import TierSet
from simulator.replica.nodes import NodesPlan
from simulator.scheduling import POLICIES, EngineArgs, resolve
from simulator.scheduling.adapters import LoraPlan
from simulator.scheduling.holding import Holding

Role = Literal["both", "prefill", "decode"]
OptionValue = bool | int | float | str


@dataclass(frozen=True)
class Group:
    """Equal replicas of one engine.

    num_gpu_blocks: KV blocks as vLLM counts them (its null block included); of each data-parallel rank.
    max_model_len: requests whose prompt and output exceed it are not served (0: that of ``args``, where 0 is no limit).
    role: what of a request is computed here: its prompt, its output tokens after the first, or both.
    weight: work it does per second, relative to other groups; for routers that ask.
    watts: that a replica draws above idle while it computes, of 32 tokens a step; the same.
    model: label of the trace's ``model`` column that is served here; None: any.
    kv: size of a request's KV cache, where it may have to move.
    power: of its GPUs, where somebody changes their clocks; ``cost`` is then that of the highest clock.
    gpu, num_gpus: what a replica runs on, for the records.
    tiers: slower places behind the prefix cache.
    shares: group on whose GPUs these replicas run too, the first on those of its first and so on; None: on their own.
    holding: KV blocks of a request where they are other than one per ``block_size`` tokens.
    lends: replicas take KV blocks from each other.
    parallel_chunks: chunks of a prompt do not attend to each other.
    lora: adapters that requests may ask for; None: they cost nothing.
    nodes: that hold some layers each; None: every GPU of a replica is alike.
    """

    args: EngineArgs
    cost: StepCost
    num_gpu_blocks: int
    max_model_len: int = 0
    name: str = "replicas"
    count: int = 1
    role: Role = "both"
    weight: float = 1.0
    watts: float = 1.0
    model: str | None = None
    kv: KvBytes | None = None
    gpu: str = ""
    num_gpus: int = 1
    power: PowerModel | None = None
    tiers: TierSet | None = None
    shares: str | None = None
    holding: Holding | None = None
    lends: bool = False
    parallel_chunks: bool = False
    lora: LoraPlan | None = None
    nodes: NodesPlan | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "args", resolve(self.args))

    @property
    def kv_blocks(self) -> int:
        """Usable KV blocks of all ranks together; of all replicas, where they lend each other theirs."""
        return (self.num_gpu_blocks - 1) * self.args.data_parallel_size * (self.count if self.lends else 1)

    @property
    def slice_tokens(self) -> int:
        """Output tokens after which a request goes back to the router; 0: it stays."""
        return POLICIES.get(self.args.policy).slice_of(self.args)

    @property
    def longest_request(self) -> int:
        """Tokens, prompt and output. The last token needs no KV of its own."""
        blocks, size = (self.num_gpu_blocks - 1) * (self.count if self.lends else 1), self.args.block_size
        limit = self.max_model_len or self.args.max_model_len
        if self.holding is not None:
            return self.holding.longest(blocks, size, limit)
        capacity = blocks * size + 1
        return min(capacity, limit) if limit else capacity


@dataclass(frozen=True)
class RouterPlan:
    """A router by name, with its options.

    metrics_interval_s: engines are asked for their queues and KV usage so often; 0: at every request.
    """

    policy: str = "round-robin"
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    metrics_interval_s: float = 0.05


@dataclass(frozen=True)
class MixedPlan:
    """Replicas of one role help out with the other.

    prompt_tokens: a prefill replica with so many prompt tokens to compute takes no more while some decode replica has
    fewer, which then computes prompts too. waiting_requests: when so many requests wait for blocks of every decode
    replica, prefill replicas decode what they compute. None: they do not.
    """

    prompt_tokens: int | None = None
    waiting_requests: int | None = None


@dataclass(frozen=True)
class DisaggregationPlan:
    """How requests go from prefill to decode replicas.

    decode_router: chooses the decode replica. push: as the request arrives, and its blocks are reserved as its prompt
    is begun; else, pull: when its prompt is computed.
    layerwise: KV is sent layer by layer while the prompt is computed; needs push.
    first_token: whose token the client gets first; decode: the decode replica computes the last prompt token again.
    min_prompt_tokens: shorter prompts are computed where they are decoded.
    decode_prefix_hits: blocks that the decode replica's prefix cache holds are not sent.
    mixed: None: every replica keeps to its role.
    """

    decode_router: RouterPlan = RouterPlan("least-requests")
    push: bool = False
    layerwise: bool = False
    first_token: Role = "prefill"  # noqa: S105 - not that kind of token
    min_prompt_tokens: int = 0
    decode_prefix_hits: bool = True
    mixed: MixedPlan | None = None


@dataclass(frozen=True)
class MigrationPlan:
    """Live migration between replicas that are short of memory and others.

    out_below_tokens, in_above_tokens: freeness (tokens that every running request could still make) below which a
    replica gives requests away, and above which it takes them.
    last_stage_tokens: so few tokens left to copy, or ``max_stages`` copies, and the request stops for the last one.
    """

    interval_s: float = 0.5
    out_below_tokens: float = 64.0
    in_above_tokens: float = 256.0
    last_stage_tokens: int = 16
    max_stages: int = 8


@dataclass(frozen=True)
class ClocksPlan:
    """A controller of GPU clocks by name, asked every ``interval_s``."""

    policy: str
    options: Mapping[str, OptionValue] = field(default_factory=dict)
    interval_s: float = 2.0


@dataclass(frozen=True)
class ClusterPlan:
    """Everything of a cluster but the requests.

    topology: of all replicas, in their order, where KV moves between them.
    life: None: the replicas of every group are there from the start to the end.
    clocks: None: those of the GPUs stay as they are.
    """

    groups: tuple[Group, ...]
    router: RouterPlan = RouterPlan()
    disaggregation: DisaggregationPlan | None = None
    migration: MigrationPlan | None = None
    topology: Topology | None = None
    admission: Admission | None = None
    life: LifePlan | None = None
    clocks: ClocksPlan | None = None
    front: FrontPlan | None = None

    @property
    def sliced(self) -> bool:
        """Whether requests come back from engines without having ended."""
        return any(group.slice_tokens for group in self.groups)

    @property
    def moves_kv(self) -> bool:
        """Whether requests come to replicas with KV that others have computed."""
        life = self.life
        rescued = life is not None and (life.migrates or life.copies_every_tokens is not None)
        return self.disaggregation is not None or self.migration is not None or rescued


def single(args: EngineArgs, cost: StepCost, num_gpu_blocks: int, *, max_model_len: int = 0) -> ClusterPlan:
    """One replica."""
    return ClusterPlan((Group(args, cost, num_gpu_blocks, max_model_len),))
