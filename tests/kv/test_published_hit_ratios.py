"""Hit-ratio curves of public traces against figures that others give or that were found by other means."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator.kv.accesses import accesses
from simulator.kv.curves import hit_curve
from simulator.kv.stack_distance import lru_hits
from traces.formats import read_trace
from traces.trace import Trace

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "traces"
pytestmark = pytest.mark.skipif(not DATA.exists(), reason="the public traces are not here (../shared/data/traces)")


def rows_of(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress((DATA / name).read_bytes()).split(b"\n") if line.strip()]


def tokens_hit(trace: Trace) -> float:
    """Share of prompt tokens that LRU holds when nothing is ever forgotten."""
    assert trace.prefix is not None
    found = accesses(trace.prefix.offsets, trace.prefix.ids)
    [hits] = lru_hits(found, np.array([found.num_blocks])).tolist()
    assert hits == found.num_used - found.num_blocks
    return float(hits * trace.prefix.block_tokens / trace.prompt_tokens.sum())


def test_the_mooncake_conversation_trace() -> None:
    """Block counts of the published trace (its last, partial blocks too): ideal .366, LRU .065 .211 .326 .364."""
    rows = [row["hash_ids"] for row in rows_of("mooncake/conversation_trace.jsonl.gz")]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    found = accesses(offsets, np.array([block for row in rows for block in row], dtype=np.int64))
    sizes = np.array([3_000, 10_000, 30_000, 100_000])
    assert found.ideal == pytest.approx(0.366, abs=5e-4)
    np.testing.assert_allclose(hit_curve(found, "lru", sizes).blocks, [0.065, 0.211, 0.326, 0.364], atol=7e-4)
    assert hit_curve(found, "belady", sizes[:1]).prefix[0] < found.ideal


def test_ragpulse_prompts_and_passages() -> None:
    """31.5 % of tokens by prefixes, 90 % of passages by themselves."""
    trace = read_trace(DATA / "ragpulse/0_trace.jsonl.gz")
    assert tokens_hit(trace) == pytest.approx(0.315, abs=0.001)
    passages = np.array([i for row in rows_of("ragpulse/0_trace.jsonl.gz") for i in row["hash_ids"]["passages_ids"]])
    alone = accesses(np.arange(len(passages) + 1), passages)  # each wherever it stands
    assert alone.ideal == pytest.approx(0.90, abs=0.005)


def test_weka_conversations() -> None:
    """96.3 % of the tokens of all 710 conversations; here the first 20."""
    trace = read_trace(DATA / "weka-claude-code/traces.jsonl.gz", conversations=20, session_rate=0.01)
    assert tokens_hit(trace) == pytest.approx(0.963, abs=0.03)
