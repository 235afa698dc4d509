"""What if the load, or the step times, are not what the plan takes them to be: changes whose effect a report shows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from simulator.core.random import streams
from simulator.scenario.setup import Setup
from traces import transforms
from traces.prefix import cut_to_full_blocks
from traces.trace import PrefixBlocks, Trace

APART_S = 120.0  # between a request and the one made like it
UNKNOWN_ERROR = 0.25  # of step times without a calibration: an assumption


@dataclass(frozen=True)
class Change:
    """Of a load. ``prompts``: lengths of prompts times this. ``private``: share of the requests whose prompts are made
    unlike any other's, so that they hit no cached prefix. ``slower``: time of every step times this. ``traffic``: so
    many times the requests (or conversations), of the same kind and through the same hours."""

    name: str = "as it is"
    prompts: float = 1.0
    private: float = 0.0
    slower: float = 1.0
    traffic: float = 1.0

    def applied(self, trace: Trace, seed: int, max_model_len: int) -> Trace:
        """Prompts are cut where prompt and answer would not fit the model. Shared prefixes grow with the prompts."""
        if self.traffic != 1.0:
            trace = _thinner(trace, seed, self.traffic) if self.traffic < 1.0 else _denser(trace, seed, self.traffic)
        if self.prompts != 1.0:
            room = np.maximum(max_model_len - trace.output_tokens, 1)
            longer = np.clip(np.rint(trace.prompt_tokens * self.prompts), 1, np.maximum(room, trace.prompt_tokens))
            prefix = trace.prefix
            if prefix is not None:
                size = max(1, round(prefix.block_tokens * self.prompts))
                prefix = cut_to_full_blocks(PrefixBlocks(prefix.offsets, prefix.ids, size), longer.astype(np.int64))
            trace = replace(trace, prompt_tokens=longer.astype(np.int64), prefix=prefix)
        return _estranged(trace, seed, self.private) if self.private and trace.prefix is not None else trace


def _thinner(trace: Trace, seed: int, share: float) -> Trace:
    return transforms.sample(trace, share, streams(seed).stream("planning.traffic"))


def _denser(trace: Trace, seed: int, times: float) -> Trace:
    """As many others like them, two minutes apart from those they are like."""
    rng = streams(seed).stream("planning.traffic")
    more = [trace] * (int(times) - 1)
    if times > int(times):
        more.append(transforms.sample(trace, times - int(times), rng))
    later = [replace(part, arrival=part.arrival + APART_S * at) for at, part in enumerate(more, 1)]
    return replace(transforms.merge([trace, *later]), source=trace.source)


def _estranged(trace: Trace, seed: int, share: float) -> Trace:
    prefix = trace.prefix
    assert prefix is not None
    alone = np.repeat(streams(seed).stream("planning.private").random(len(trace)) < share, prefix.counts())
    fresh = int(prefix.ids.max(initial=0)) + 1 + np.arange(len(prefix.ids))
    return replace(trace, prefix=PrefixBlocks(prefix.offsets, np.where(alone, fresh, prefix.ids), prefix.block_tokens))


def step_time_error(setups: tuple[Setup, ...]) -> tuple[float, bool]:
    """Mean error of the calibrations' operators on shapes left out of the fits, the largest group's; and whether it is
    stated at all."""
    found = []
    for setup in setups:
        errors = [] if setup.calibration is None else list(setup.calibration.errors().values())
        points = sum(error.points for error in errors)
        found.append(sum(error.mean * error.points for error in errors) / points if points else None)
    known = [error for error in found if error is not None]
    return (max(known), True) if len(known) == len(found) else (UNKNOWN_ERROR, False)
