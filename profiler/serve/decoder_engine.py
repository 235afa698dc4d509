"""A continuous-batching engine over the profiler's decoder, with vLLM's token-budget rules and nothing else.

Every step: one token for each running request (or the next chunk of its prompt), then waiting requests first come
first served while the token budget, the sequence limit and the KV blocks last. Synchronous: schedule, run, read the
tokens back, repeat.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from profiler.measure import kernels
from profiler.measure.clock import Clock
from profiler.measure.decoder import Decoder
from profiler.serve.record import Served, Step
from profiler.serve.spec import EngineSettings
from profiler.serve.workload import Due


@dataclass(slots=True)
class _Request:
    index: int
    tokens: list[int]
    wanted: int  # tokens in all, prompt and output
    computed: int = 0
    table: list[int] = field(default_factory=list)  # block ids


class DecoderEngine:
    """Serves lists of requests, one after the other."""

    name = "decoder"

    def __init__(self, decoder: Decoder, settings: EngineSettings, clock: Clock) -> None:
        self.decoder, self.settings, self.clock = decoder, settings, clock
        self.offsets = torch.arange(settings.block_size, device=decoder.device)

    def about(self) -> dict[str, Any]:
        attention = "varlen_paged" if self._varlen() else "loop over sequences"
        return {"attention": attention, "async_scheduling": False, "cuda_graphs": False}

    def serve(self, due: Sequence[Due]) -> tuple[list[Served], list[Step]]:
        """Requests in order of arrival, open loop."""
        self._free = deque(range(self.settings.num_blocks))
        served = [Served(d.arrival_s, len(d.prompt), d.output_tokens) for d in due]
        steps: list[Step] = []
        waiting: deque[_Request] = deque()
        running: list[_Request] = []
        coming, start = 0, self.clock.now()
        with torch.no_grad():
            while coming < len(due) or waiting or running:
                now = self.clock.now() - start
                while coming < len(due) and due[coming].arrival_s <= now:
                    d = due[coming]
                    waiting.append(_Request(coming, d.prompt.tolist(), len(d.prompt) + d.output_tokens))
                    coming += 1
                if not waiting and not running:
                    self.clock.wait_until(start + due[coming].arrival_s)
                    continue
                plan = self._plan(waiting, running)
                before = self.clock.now()
                tokens = self._forward(plan)
                end = self.clock.now() - start
                forward = start + end - before
                steps.append(_step(plan, now, end, forward))
                self._apply(plan, tokens, running, served, end)
                steps[-1].end_s = self.clock.now() - start
        return served, steps

    def _plan(self, waiting: deque[_Request], running: list[_Request]) -> list[tuple[_Request, int]]:
        """(request, tokens) in the order vLLM's scheduler visits them."""
        budget, plan = self.settings.max_num_batched_tokens, []
        for request in running:
            new = min(len(request.tokens) - request.computed, budget)
            if new:
                plan.append((request, new))
                budget -= new
        while waiting and budget and len(running) < self.settings.max_num_seqs:
            request = waiting[0]
            blocks = -(-request.wanted // self.settings.block_size)
            if blocks > len(self._free):
                break
            request.table = [self._free.popleft() for _ in range(blocks)]
            new = min(len(request.tokens), budget)
            running.append(waiting.popleft())
            plan.append((request, new))
            budget -= new
        return plan

    def _forward(self, plan: Sequence[tuple[_Request, int]]) -> list[int]:
        """Next token per request of the plan; meaningless where the prompt is not complete."""
        device = self.decoder.device
        order = sorted(plan, key=lambda p: p[1] != 1 or p[0].computed == 0)  # decodes first
        tokens: list[int] = []
        positions: list[int] = []
        chunks: list[kernels.Chunk] = []
        spans = []
        for request, new in order:
            start, span = request.computed, request.computed + new
            tables = torch.tensor(request.table, device=device)
            slots = (tables[:, None] * self.settings.block_size + self.offsets).flatten()[:span]
            chunks.append(kernels.Chunk(len(tokens), new, start, slots))
            tokens += request.tokens[start:span]
            positions += range(start, span)
            spans.append(slots[start:])
        ends = torch.tensor([c.start + c.new - 1 for c in chunks], device=device)
        window = self.decoder.shape.window
        attend = self._attend(order, chunks, window)
        out = self.decoder.forward(
            torch.tensor(tokens, device=device), torch.tensor(positions, device=device), torch.cat(spans), attend, ends
        )
        found = dict(zip([r.index for r, _ in order], out.tolist(), strict=True))
        return [found[r.index] for r, _ in plan]

    def _attend(self, order: Sequence[tuple[_Request, int]], chunks: list[kernels.Chunk], window: int | None) -> Any:
        if not self._varlen():
            return lambda q, k, v: kernels.loop_attention(q, k, v, chunks, window)
        attend, device, page = kernels.varlen_paged(), self.decoder.device, self.settings.block_size
        tables = torch.nn.utils.rnn.pad_sequence([torch.tensor(r.table) for r, _ in order], batch_first=True)
        used = [c.computed + c.new for c in chunks]
        starts = torch.tensor([c.start for c in chunks] + [chunks[-1].start + chunks[-1].new], dtype=torch.int32)
        arguments = {
            "seqused_k": torch.tensor(used, dtype=torch.int32, device=device),
            "block_table": tables.to(torch.int32).to(device),
            "window_size": (-1 if window is None else window - 1, 0),
        }
        starts, longest, deepest = starts.to(device), max(c.new for c in chunks), max(used)
        kv = self.decoder.shape.kv_heads

        def run(q: Any, k: Any, v: Any) -> Any:
            pages = (x.view(-1, page, kv, q.shape[-1]) for x in (k, v))
            return attend(q, *pages, starts, None, longest, deepest, enable_gqa=q.shape[1] != kv, **arguments)

        return run

    def _varlen(self) -> bool:
        """Whether FlashAttention over block tables works here; tried once."""
        if not hasattr(self, "_paged"):
            self._paged = False
            if self.decoder.device.type == "cuda" and self.settings.block_size % 256 == 0:
                self._paged = self._try_varlen()
        return self._paged

    def _try_varlen(self) -> bool:
        s, device = self.decoder.shape, self.decoder.device
        try:
            attend = kernels.varlen_paged()
            q = torch.zeros(1, s.heads, s.head_dim, device=device, dtype=self.decoder.dtype)
            k = torch.zeros(1, self.settings.block_size, s.kv_heads, s.head_dim, device=device, dtype=q.dtype)
            one = torch.ones(1, dtype=torch.int32, device=device)
            attend(
                q, k, k, torch.tensor([0, 1], dtype=torch.int32, device=device), None, 1, 1, window_size=(-1, 0),
                enable_gqa=s.heads != s.kv_heads, seqused_k=one, block_table=torch.zeros_like(one)[:, None],
            )  # fmt: skip
            torch.cuda.synchronize()
        except Exception:  # noqa: BLE001 - whatever this build lacks, the loop works
            return False
        return True

    def _apply(
        self, plan: Sequence[tuple[_Request, int]], tokens: Sequence[int], running: list[_Request],
        served: Sequence[Served], now: float,
    ) -> None:  # fmt: skip
        for (request, new), token in zip(plan, tokens, strict=True):
            request.computed += new
            if request.computed < len(request.tokens):
                continue  # its prompt is not complete yet
            request.tokens.append(token)
            record = served[request.index]
            if record.first_token_s < 0:
                record.first_token_s = now
            if len(request.tokens) == request.wanted:
                record.last_token_s = now
                self._free.extend(request.table)
                running.remove(request)


def _step(plan: Sequence[tuple[_Request, int]], start: float, end: float, forward: float) -> Step:
    """A one-token piece over computed tokens is a decode, everything else a chunk."""
    decodes = [r for r, new in plan if new == 1 and r.computed]
    chunks = [(new, r.computed) for r, new in plan if not (new == 1 and r.computed)]
    return Step(start, end, len(decodes), sum(r.computed + 1 for r in decodes), chunks, forward)
