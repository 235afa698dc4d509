"""The readers on the published files themselves, against figures computed from those files by other means."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path

import numpy as np
import pytest

from simulator.core.errors import TraceError
from traces.describe import describe
from traces.formats import read_trace
from traces.prefix import is_chained

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "traces"
pytestmark = pytest.mark.skipif(not DATA.exists(), reason="the public traces are not here (../shared/data/traces)")


def lines_of(name: str) -> list[bytes]:
    return gzip.decompress((DATA / name).read_bytes()).split(b"\n")


@pytest.mark.parametrize(
    ("file", "rows", "rate", "cv", "prompt", "output"),
    [
        ("azure-2023/AzureLLMInferenceTrace_code.csv.gz", 8819, 2.57, 13.2, (2048, 1469, 7436), (28, 13, 252)),
        ("azure-2023/AzureLLMInferenceTrace_conv.csv.gz", 19366, 5.53, 1.09, (1155, 1020, 4142), (211, 129, 601)),
        ("mooncake/conversation_trace.jsonl.gz", 12031, 3.40, 3.03, (12035, 6909, 85401), (343, 350, 1119)),
    ],
)
def test_known_statistics(file, rows, rate, cv, prompt, output):
    start = time.process_time()
    trace = read_trace(DATA / file, strict=True)
    assert time.process_time() - start < 1
    d = describe(trace)
    assert d.requests == rows
    assert d.rate == pytest.approx(rate, abs=0.01)
    assert d.interarrival_cv == pytest.approx(cv, abs=0.06)
    for summary, expected in ((d.prompt_tokens, prompt), (d.output_tokens, output)):
        assert (summary.mean, summary.p50, summary.p99) == pytest.approx(expected, abs=1)
    assert d.notes == ()


def test_mooncake_ids_are_chained_and_an_infinite_cache_hits_37_percent():
    trace = read_trace(DATA / "mooncake/conversation_trace.jsonl.gz")
    assert trace.prefix is not None
    assert is_chained(trace.prefix)
    # By a plain walk over the file: leading ids seen before, 512 tokens each, over all prompt tokens.
    seen: set[int] = set()
    hits = 0
    for i in range(len(trace)):
        ids = trace.prefix.row(i).tolist()
        hits += next((k for k, block in enumerate(ids) if block not in seen), len(ids))
        seen.update(ids)
    ratio = hits * 512 / trace.prompt_tokens.sum()
    assert ratio == pytest.approx(0.3734, abs=0.0005)
    assert describe(trace).prefix_hit_ratio == pytest.approx(ratio)


def test_ragpulse_prompts_share_their_system_prompts_and_passages():
    trace = read_trace(DATA / "ragpulse/0_trace.jsonl.gz")
    assert len(trace) == 7106
    assert trace.prefix is not None
    assert is_chained(trace.prefix)
    spare = trace.prompt_tokens - trace.prefix.counts() * 16
    assert spare.min() >= 6  # the template's tokens stand after all parts
    assert spare.max() < 12 + 16
    assert trace.session is not None
    assert len(np.unique(trace.session)) == 3990
    assert "1 were out of order" in trace.notes[0]
    assert describe(trace).prefix_hit_ratio == pytest.approx(0.315, abs=0.001)  # in tokens, by the parts' order
    rows = [json.loads(line) for line in lines_of("ragpulse/0_trace.jsonl.gz") if line.strip()]
    passages = [i for row in rows for i in row["hash_ids"]["passages_ids"]]
    assert 1 - len(set(passages)) / len(passages) == pytest.approx(0.90, abs=0.005)
    assert trace.chunks is not None
    retrieved = np.isin(trace.chunks.ids, np.array(passages))
    assert retrieved.sum() == len(passages)
    first = np.unique(trace.chunks.ids[retrieved], return_index=True)[1]
    assert 1 - len(first) / retrieved.sum() == pytest.approx(0.90, abs=0.005)
    with pytest.raises(TraceError, match=r"0_trace\.jsonl\.gz:\d+: the row arrives before"):
        read_trace(DATA / "ragpulse/0_trace.jsonl.gz", strict=True)


def test_weka_conversations_come_with_their_sub_agents():
    trace = read_trace(DATA / "weka-claude-code/traces.jsonl.gz", conversations=40, session_rate=0.01)
    assert trace.prefix is not None
    assert is_chained(trace.prefix)
    assert trace.prefix.block_tokens == 64
    assert (trace.prefix.counts() == trace.prompt_tokens // 64).all()
    d = describe(trace)
    assert d.sessions is not None
    assert d.sessions == 40
    assert trace.after is not None
    assert trace.after.counts().max() > 1  # somebody waits for a sub-agent too
    assert d.prefix_hit_ratio is not None
    assert d.prefix_hit_ratio > 0.9


def test_weka_conversations_hit_what_the_same_conversation_had():
    """96.3 % of all prompt tokens (all 710 conversations, this walk), of which these are the first 30."""
    lines = lines_of("weka-claude-code/traces.jsonl.gz")[:30]
    tokens = hits = 0
    for line in lines:
        seen: set[int] = set()
        agents = [json.loads(line)["requests"]]
        rows: list[tuple[float, list[int], int]] = []
        while agents:
            for entry in agents.pop():
                if "requests" in entry:
                    agents.append(entry["requests"])
                elif entry["out"]:
                    ids = [i for first, count in entry["h"] for i in range(first, first + count)]
                    rows.append((entry["t"], ids, entry["in"]))
        for _, ids, prompt in rows:
            hits += 64 * next((k for k, block in enumerate(ids[: prompt // 64]) if block not in seen), prompt // 64)
            tokens += prompt
            seen.update(ids)
    assert hits / tokens == pytest.approx(0.963, abs=0.03)
    found = read_trace(DATA / "weka-claude-code/traces.jsonl.gz", conversations=30, session_rate=1e-6)
    assert describe(found).prefix_hit_ratio == pytest.approx(hits / tokens, abs=0.003)


def test_a_servegen_window_has_the_rate_its_clients_add_up_to():
    trace = read_trace(DATA / "servegen/deepseek-r1-trace.csv.gz", start_s=3600.0, duration_s=1200.0)
    import pandas as pd

    table = pd.read_csv(DATA / "servegen/deepseek-r1-trace.csv.gz")
    expected = table[table.t.isin([3600, 4200])].rate.sum() * 600
    assert len(trace) == pytest.approx(expected, abs=100)  # each client's window is rounded up or down
    assert trace.tenant is not None
    assert len(trace.tenant.names) > 20
    halved = read_trace(DATA / "servegen/deepseek-r1-trace.csv.gz", start_s=3600.0, duration_s=1200.0, rate=8.0)
    assert len(halved) == pytest.approx(9600, rel=0.02)


def test_foreign_length_tables_are_read_by_naming_columns():
    names = {"arrival": "req_time_s", "tenant": "client", "prompt_tokens": "input_tokens"}
    trace = read_trace(DATA / "vtc-arena/arena_27clients.csv", "table", columns=names)
    assert len(trace) == 1500
    assert trace.tenant is not None
    assert len(trace.tenant.names) == 27
