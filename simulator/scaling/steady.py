"""What a pool of equal replicas would do under the load of the moment, for any number of them and any clock."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.scaling.profile import Profile
from simulator.scaling.scaler import GroupView

CHUNK = 2048  # prompt tokens of the step that is priced
ROUNDS = 12  # of the fixed point between batch and step time


@dataclass(frozen=True, slots=True)
class Load:
    """Of a pool, all replicas together. context_tokens: of one request."""

    decode_tokens_per_s: float
    prompt_tokens_per_s: float
    prompt_tokens: float  # of one request
    context_tokens: float

    def times(self, factor: float) -> Load:
        """With headroom."""
        return Load(
            self.decode_tokens_per_s * factor,
            self.prompt_tokens_per_s * factor,
            self.prompt_tokens,
            self.context_tokens,
        )


@dataclass(frozen=True, slots=True)
class Steady:
    """Of one replica: gap between tokens, time to the first one, and power, averaged over time."""

    tpot_s: float
    ttft_s: float
    watts: float


def load_of(group: GroupView, profile: Profile, interval_s: float) -> Load:
    """As the present shows it. A request that runs makes a token per step; one that waits will."""
    ready = max(group.ready, 1)
    batch = group.running / ready
    context = group.context_tokens / max(group.running, 1)
    prompts_per_s = group.prompt_tokens / interval_s
    busy = min(prompts_per_s / ready * _prompt_s_per_token(profile, group.clock), 0.9)
    step = profile.decode_s(max(round(batch), 1), max(round(batch * context), 1), group.clock)
    made = ready * batch / step * (1.0 - busy)
    backlog = (group.running + group.waiting) / max(group.running, 1)
    return Load(made * backlog, prompts_per_s, group.prompt_tokens / max(group.arrivals, 1), context)


def steady(load: Load, replicas: int, clock: float, profile: Profile) -> Steady | None:
    """Equilibrium of each of ``replicas`` at a clock; None: they cannot keep up.

    Prompts take a share of the time; the decode steps of the rest must make the tokens that are asked for: the batch
    grows until they do. The first token waits for a prompt in front (M/D/1) and is computed at the clock.
    """
    prompt_s = _prompt_s_per_token(profile, clock)
    busy = load.prompt_tokens_per_s / replicas * prompt_s
    if busy >= 0.9:
        return None
    wanted = load.decode_tokens_per_s / replicas
    batch = 1.0
    for _ in range(ROUNDS):
        step = profile.decode_s(max(round(batch), 1), max(round(batch * load.context_tokens), 1), clock)
        batch = wanted * step / (1.0 - busy)
        if batch > profile.max_num_seqs:
            return None
    own = load.prompt_tokens * prompt_s
    decoding = min(batch, 1.0) * (1.0 - busy)
    watts = profile.idle_w + busy * (profile.watts(CHUNK, clock) - profile.idle_w)
    watts += decoding * (profile.watts(max(round(batch), 1), clock) - profile.idle_w)
    return Steady(step / (1.0 - busy), own * (1.0 + busy / (2.0 * (1.0 - busy))) + step, watts)


def _prompt_s_per_token(profile: Profile, clock: float) -> float:
    return profile.prompt_s(CHUNK, clock) / CHUNK
