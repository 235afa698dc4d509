"""The engines really serve: every token of every request, in the order of the rules. Needs torch."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra: profile); make test-profiler runs this")

import numpy as np  # noqa: E402

from profiler.measure.decoder import Decoder  # noqa: E402
from profiler.measure.devices import Device  # noqa: E402
from profiler.measure.kernels import Chunk, loop_attention  # noqa: E402
from profiler.measure.models import from_config  # noqa: E402
from profiler.serve import record  # noqa: E402
from profiler.serve.decoder_engine import DecoderEngine  # noqa: E402
from profiler.serve.run import serve  # noqa: E402
from profiler.serve.spec import EngineSettings, load  # noqa: E402
from profiler.serve.workload import Due, closed_batch  # noqa: E402

CONFIG = {
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "intermediate_size": 96, "vocab_size": 128,
}  # fmt: skip
MOE = CONFIG | {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 32}
SETTINGS = EngineSettings(max_num_seqs=3, max_num_batched_tokens=16, block_size=8, num_blocks=64)


def engine(config: dict[str, int] = CONFIG, settings: EngineSettings = SETTINGS) -> DecoderEngine:
    shape = from_config(config, "tiny", "here")
    slots = settings.num_blocks * settings.block_size
    decoder = Decoder(shape, "cpu", torch.float32, num_slots=slots, max_positions=256)
    return DecoderEngine(decoder, settings, Device("cpu", threads=1, clock="cpu").clock)


def alone(decoder: Decoder, prompt: list[int], count: int) -> list[int]:
    """Greedy tokens without batching, chunking or a cache: the whole text is computed anew for every token."""
    text = list(prompt)
    for _ in range(count):
        everything = torch.arange(len(text))
        chunks = [Chunk(0, len(text), 0, everything)]
        with torch.no_grad():
            out = decoder.forward(
                torch.tensor(text), everything, everything,
                lambda q, k, v, c=chunks: loop_attention(q, k, v, c, None), torch.tensor([len(text) - 1]),
            )  # fmt: skip
        text.append(int(out))
    return text[len(prompt) :]


@pytest.mark.parametrize("config", [CONFIG, MOE], ids=["dense", "moe"])
def test_batching_chunking_and_paging_change_no_token(config: dict[str, int], monkeypatch: pytest.MonkeyPatch):
    server = engine(config)
    rng = np.random.default_rng(0)
    due = [Due(0.0, rng.integers(128, size=int(n)), int(m)) for n, m in ((5, 6), (40, 4), (1, 9), (17, 3), (16, 1))]
    made: dict[int, list[int]] = {}
    apply = server._apply

    def watched(plan, tokens, running, served, now):
        for (request, new), token in zip(plan, tokens, strict=True):
            if request.computed + new == len(request.tokens):
                made.setdefault(request.index, []).append(token)
        apply(plan, tokens, running, served, now)

    monkeypatch.setattr(server, "_apply", watched)
    served, steps = server.serve(due)
    for i, d in enumerate(due):
        assert len(made[i]) == d.output_tokens
        assert made[i] == alone(engine(config).decoder, d.prompt.tolist(), d.output_tokens)
    for s in steps:
        assert s.num_decodes + sum(n for n, _ in s.chunks) <= SETTINGS.max_num_batched_tokens
        assert s.num_decodes + len(s.chunks) <= SETTINGS.max_num_seqs
        assert s.end_s >= s.start_s
    assert all(0 < r.first_token_s <= r.last_token_s for r in served)
    assert sum(n for s in steps for n, _ in s.chunks) == sum(len(d.prompt) for d in due)


def test_requests_wait_for_their_arrival_and_are_served_in_order():
    served, steps = engine().serve([Due(0.0, np.arange(4), 2), Due(5.0, np.arange(9), 2), Due(5.0, np.arange(3), 2)])
    assert served[0].last_token_s < 5.0
    assert all(r.first_token_s > 5.0 for r in served[1:])
    assert served[1].first_token_s <= served[2].first_token_s
    assert steps[-1].end_s < 10.0


def test_both_engines_serve_the_same_requests_end_to_end(tmp_path: Path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra: profile)")
    del transformers
    text = """
name: minimal
device: cpu
dtype: fp32
threads: 1
clock: cpu
models: [{name: tiny, hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 4, num_key_value_heads: 2, head_dim: 16,
          intermediate_size: 96, vocab_size: 128}]
settings: {max_num_seqs: 4, max_num_batched_tokens: 32, block_size: 16, num_blocks: 64}
workload:
  requests: 8
  rates: {low: 20, high: 1000}
  prompt: {median: 12, sigma: 0.6, low: 2, high: 48}
  output: {median: 5, sigma: 0.5, low: 1, high: 12}
probe: {batches: [1, 3], prompt: 8, output: 4}
"""
    path = tmp_path / "serve.yaml"
    path.write_text(text, encoding="utf-8")
    files = serve(load(path), tmp_path, say=lambda _: None)
    assert [f.name for f in files] == ["served-tiny-transformers.json", "served-tiny-decoder.json"]
    runs = [record.read(f) for f in files]
    for run in runs:
        for found in run.loads:
            assert len(found.requests) == 8
            for r in found.requests:
                assert r.arrival_s < r.first_token_s <= r.last_token_s
            computed = sum(n for s in found.steps for n, _ in s.chunks) + sum(s.num_decodes for s in found.steps)
            assert computed == sum(r.prompt_tokens + r.output_tokens - 1 for r in found.requests)
    same = [[(r.arrival_s, r.prompt_tokens, r.output_tokens) for x in run.loads for r in x.requests] for run in runs]
    assert same[0] == same[1]
    assert serve(load(path), tmp_path, say=lambda _: None) == []  # kept


def test_a_closed_batch_is_prefilled_together():
    _, steps = engine().serve(closed_batch(3, 5, 3, 128))
    assert sorted(steps[0].chunks) == [(5, 0)] * 3
    assert [s.num_decodes for s in steps[1:]] == [3, 3]
