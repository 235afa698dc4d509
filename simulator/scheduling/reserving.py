"""What policies share that reserve a request's KV, as one contiguous piece, when they admit it."""

from __future__ import annotations

from simulator.core.errors import PolicyError
from simulator.scheduling.state import EngineState


def longest_reservation(state: EngineState) -> int:
    """Blocks for ``max_model_len`` tokens. Raises PolicyError when it is unknown or the KV cache has not as many."""
    policy, longest = state.args.policy, state.args.max_model_len
    if not longest:
        raise PolicyError(
            f"engine policy {policy!r} reserves KV for max_model_len tokens, which is not set.",
            remedy="Set max_model_len.",
        )
    blocks = state.blocks_of(longest)
    if blocks > state.pool.num_blocks:
        raise PolicyError(
            f"engine policy {policy!r} reserves KV for max_model_len = {longest} tokens a request; "
            f"the KV cache holds {state.pool.num_blocks * state.block_size}.",
            remedy="Lower max_model_len, or give the engine more memory.",
        )
    return blocks
