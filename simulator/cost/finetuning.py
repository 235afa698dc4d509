"""Inference and fine-tuning of an adapter on the same GPUs: in the same steps, or in slices of time.

*Co-serving* (FlexLLM, arXiv:2402.18789). Every step is filled with tokens of the fine-tuning job until it lasts
``step_s``, or stays as it is where inference alone takes so long. A token of the job passes the model twice: forward,
and backward for the gradient of the activations, which multiplies with the same frozen weights; weight gradients are
the adapter's alone and are not counted. So ``n`` tokens of a step, half of them forward and half backward, cost what
``n`` tokens of a prompt cost in every matrix and in the output layer, and train ``n / 2``. Attention backward takes 2.5
times its forward (Dao, FlashAttention-2, arXiv:2307.08691, section 3.2), in kernels of its own.

*Time slices.* The job has the GPUs to itself for a share of the time, in which inference waits: every step lasts
``1 / (1 - share)`` times as long.

Without requests the job has all of the time, in steps of a whole sample; that one arriving then waits for such a step
is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulator.cost.interface import Line, StepCost, UnevenStepCost, uneven_cost
from simulator.cost.step import OperatorCost

BACKWARD_ATTENTION = 2.5  # times forward
LEAST = 16  # tokens of the job that are worth changing a step for
MOST = 1 << 16


@dataclass(frozen=True, slots=True)
class Finetuning:
    """A job that never ends. step_s: what steps are filled to; share: of the time, None: co-serving.
    sequence_tokens: of its samples, which attention grows with."""

    step_s: float
    share: float | None
    sequence_tokens: int


class FinetuningCost:
    """``StepCost`` of an engine with a fine-tuning job beside it."""

    def __init__(self, inner: OperatorCost, job: Finetuning) -> None:
        self.sliding_window = inner.sliding_window
        self._uneven: UnevenStepCost | None = uneven_cost(inner)
        self.uneven = self._uneven is not None
        self._inner, self.job = inner, job
        self._known: dict[tuple[int, int, int, int], int] = {}

    # -- StepCost -----------------------------------------------------------------------------------------------

    def decode(  # noqa: PLR0917 - see UnevenStepCost
        self, num_decodes: int, context: int, windowed: int, growing: int, longest: int = 0, squares: int = 0
    ) -> Line:
        if self._uneven is not None:
            line = self._uneven.decode(num_decodes, context, windowed, growing, longest, squares)
        else:
            line = self._inner.decode(num_decodes, context, windowed, growing)
        share, step_s = self.job.share, self.job.step_s
        if share is not None:
            return Line(line.first / (1.0 - share), line.increment / (1.0 - share), line.valid_steps)
        beside = self._extra(LEAST, num_decodes, num_decodes)
        if line.first + beside >= step_s:
            return line
        if line.increment <= 0.0:
            return Line(step_s, 0.0, line.valid_steps)
        return Line(step_s, 0.0, min(line.valid_steps, int((step_s - beside - line.first) / line.increment) + 1))

    def mixed(  # noqa: PLR0917
        self, num_decodes: int, context: int, windowed: int, chunks: Sequence[tuple[int, int]], num_sampled: int,
        longest: int = 0, squares: int = 0,
    ) -> float:  # fmt: skip
        if not chunks:
            return self.decode(num_decodes, context, windowed, 0, longest, squares).first
        if self._uneven is not None:
            seconds = self._uneven.mixed(num_decodes, context, windowed, chunks, num_sampled, longest, squares)
        else:
            seconds = self._inner.mixed(num_decodes, context, windowed, chunks, num_sampled)
        if self.job.share is not None:
            return seconds / (1.0 - self.job.share)
        tokens = num_decodes + sum(new for new, _ in chunks)
        step_s = self.job.step_s
        return max(seconds, step_s) if seconds + self._extra(LEAST, tokens, num_sampled) <= step_s else seconds

    # -- the job ------------------------------------------------------------------------------------------------

    def _extra(self, job_tokens: int, tokens: int, sampled: int) -> float:
        """Seconds that tokens of the job, half of them forward and half backward, add to a step with so many of
        requests, ``sampled`` of which need logits."""
        cost = self._inner
        before = max(self.job.sequence_tokens - job_tokens, 0) // 2  # of their sample, on average
        seconds = cost.attention_of_chunk(job_tokens, before) * (1.0 + BACKWARD_ATTENTION) / 2.0
        return seconds + cost.tokens_s(tokens + job_tokens, sampled + job_tokens) - cost.tokens_s(tokens, sampled)

    def tokens_of_step(self, num_decodes: int, context: int, windowed: int, prompt: int) -> int:
        """Tokens of the job, passes counted each, that fit a co-served step of ``step_s`` with so much inference in it;
        0 where it takes as long alone."""
        key = (num_decodes, context >> 8, windowed >> 8, prompt)
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = self._fitting(num_decodes, context, windowed, prompt)
        return found

    def _fitting(self, num_decodes: int, context: int, windowed: int, prompt: int) -> int:
        chunks = [(prompt, 0)] if prompt else []
        tokens, sampled = num_decodes + prompt, num_decodes + len(chunks)
        alone = self._inner.mixed(num_decodes, context, windowed, chunks, sampled) if tokens else 0.0

        def fits(job_tokens: int) -> bool:
            return alone + self._extra(job_tokens, tokens, sampled) <= self.job.step_s

        low, high = 0, LEAST
        while high < MOST and fits(high):
            low, high = high, 2 * high
        while high - low > max(low >> 7, 1) and low:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    @property
    def alone_tokens_per_s(self) -> float:
        """Tokens trained per second without any requests."""
        sample = self.job.sequence_tokens
        return sample / 2.0 / self._extra(sample, 0, 0)


def job_of(cost: StepCost) -> FinetuningCost | None:
    """The job beside an engine's steps."""
    return cost if isinstance(cost, FinetuningCost) else None
