"""Continuous batching in as many equal microbatches as the pipeline has stages."""

from __future__ import annotations

from simulator.scheduling.policy import POLICIES
from simulator.scheduling.state import EngineState
from simulator.scheduling.vllm import Vllm


@POLICIES.register("microbatches")
class Microbatches(Vllm):
    """vLLM's scheduling, with running requests kept in equal microbatches, one per pipeline stage.

    Decides: as ``vllm``, but a batch admits requests only up to its share of ``max_num_seqs``, and requests that come
    with KV from elsewhere join the smallest one. ``vllm`` puts all that could run into the next batch, so decodes
    gather in one that passes the stages alone, while the others idle.
    Why it helps: a pipeline is full only with a batch per stage, and half the requests take nearly as long to decode.
    Limits: without a pipeline it is ``vllm``. Microbatches whose requests end unevenly are evened by new ones alone.
    Reference: microbatches of FasterTransformer's pipelines as DéjàVu fills them (Strati et al., ICML 2024,
    arXiv:2403.01876); a batch per stage, Agrawal et al., Sarathi-Serve, OSDI 2024 (arXiv:2403.02310).
    """

    async_by_default = False
    spreads = True

    def most_running(self, state: EngineState) -> int:
        share = -(-self.max_num_seqs // len(state.lanes))
        return min(self.max_num_seqs, len(state.running) + max(share - state.num_decodes, 0))
