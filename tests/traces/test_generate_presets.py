"""Presets: what they generate is like the trace they were fitted to, within the tolerances written here."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from simulator.core.errors import TraceError
from traces.describe import describe
from traces.formats import read_trace
from traces.generate import PRESETS, Generators, generate, load_preset

DATA = Path(__file__).resolve().parents[2] / ".." / "shared" / "data" / "traces"
needs_data = pytest.mark.skipif(not DATA.exists(), reason="the public traces are not here (../shared/data/traces)")
LLMSERVINGSIM = {"format": "table", "columns": {"arrival": "arrival_s", "prompt_tokens": "input_tokens"}}


def test_the_promised_presets_are_there_with_source_and_licence():
    assert set(PRESETS) == {
        "arxiv-summarization", "azure-code", "azure-conv", "mooncake-conversation", "reasoning", "servegen-large", "sharegpt",
        "sharegpt-long",
    }  # fmt: skip
    for name in PRESETS:
        preset = load_preset(name)
        assert preset.licence in {"CC-BY-4.0", "Apache-2.0", "MIT", "published figures"}
        assert "github.com" in preset.source or "arXiv" in preset.source
        assert preset.description


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("steady", [False, True])
def test_any_rate_can_be_had_and_a_seed_gives_the_same_bytes(name, steady):
    trace = generate(name, num_requests=20_000, rate=40.0, seed=5, steady=steady)
    assert len(trace) == 20_000
    # Bursts and clients make a sample's rate vary: azure-code's standard error is 13 / sqrt(20,000) = 9 %.
    assert trace.rate == pytest.approx(40, rel=0.25 if name == "azure-code" else 0.05)
    again = generate(name, num_requests=20_000, rate=40.0, generators=Generators.of(5), steady=steady)
    assert trace.arrival.tobytes() == again.arrival.tobytes()
    assert trace.output_tokens.tobytes() == again.output_tokens.tobytes()


def test_lengths_do_not_depend_on_the_rate():
    slow, fast = (generate("azure-conv", num_requests=1000, rate=r, seed=1) for r in (1, 100))
    np.testing.assert_array_equal(slow.prompt_tokens, fast.prompt_tokens)


def test_wrong_arguments_are_refused():
    with pytest.raises(TraceError, match="'azure-conv'"):
        generate("azure_conv", num_requests=1, seed=0)
    with pytest.raises(TraceError, match="either a seed or generators"):
        generate("azure-conv", num_requests=1)
    with pytest.raises(TraceError, match="rate must be"):
        generate("azure-conv", num_requests=1, rate=0, seed=0)
    with pytest.raises(TraceError, match="num_requests"):
        generate("azure-conv", num_requests=0, seed=0)


def test_a_million_requests_take_a_second():
    start = time.process_time()
    generate("azure-conv", num_requests=1_000_000, seed=0)
    assert time.process_time() - start < 2


def test_published_statistics_of_azure_and_mooncake():
    """Computed from the official files (tokens, requests/s): these hold without the files at hand."""
    for name, prompt, output, rate in (
        ("azure-conv", (1155, 1020, 2735, 4142), (211, 129, 424, 601), 5.53),
        ("azure-code", (2048, 1469, 5194, 7436), (28, 13, 55, 252), 2.57),
        ("mooncake-conversation", (12035, 6909, 27367, 85401), (343, 350, 597, None), 3.40),
    ):
        trace = generate(name, num_requests=40_000 if name != "mooncake-conversation" else 12_031, seed=2)
        for tokens, expected in ((trace.prompt_tokens, prompt), (trace.output_tokens, output)):
            found = [tokens.mean(), *np.percentile(tokens, [50, 90, 99])]
            for value, figure in zip(found, expected, strict=True):
                if figure is not None:
                    assert value == pytest.approx(figure, rel=0.12), (name, found, expected)
        assert trace.rate == pytest.approx(rate, rel=0.2 if name == "azure-code" else 0.03)


def compared():
    """Rows of the table in traces/README.md: (preset, side, [(published or None, generated), ...])."""
    text = (Path(__file__).resolve().parents[2] / "traces" / "README.md").read_text(encoding="utf-8")
    table = text.split("| preset | tokens |", 1)[1].split("\n\n", 1)[0]
    for line in table.splitlines()[2:]:
        name, side, *cells = [cell.strip().replace(",", "") for cell in line.strip("|").split("|")]
        pairs = [cell.split(" / ") for cell in cells]
        yield name.strip("`"), side, [(None if a == "-" else float(a), float(b)) for a, b in pairs]


def test_the_documented_comparison_with_published_statistics_holds():
    rows = list(compared())
    assert {name for name, _, _ in rows} == set(PRESETS)
    for name, side, pairs in rows:
        trace = generate(name, num_requests=12_031 if name == "mooncake-conversation" else 40_000, seed=2)
        tokens = getattr(trace, f"{side}_tokens")
        found = [tokens.mean(), *np.percentile(tokens, [50, 90, 95, 99])]
        for value, (published, generated) in zip(found, pairs, strict=True):
            assert value == pytest.approx(generated, rel=0.02, abs=1), (name, side)
            # Everything published is met within 10 %, a lone maximum's neighbour apart.
            assert published is None or generated == pytest.approx(published, rel=0.1, abs=2), (name, side)


@needs_data
@pytest.mark.parametrize(
    ("name", "file", "options"),
    [
        ("azure-conv", "azure-2023/AzureLLMInferenceTrace_conv.csv.gz", {}),
        ("azure-code", "azure-2023/AzureLLMInferenceTrace_code.csv.gz", {}),
        ("sharegpt-long", "lengths/sharegpt-llama-3.1-8b-300-sps10.csv", LLMSERVINGSIM),
        ("arxiv-summarization", "lengths/arxiv_summarization_lengths.csv.gz", {}),
    ],
)
def test_lengths_have_the_real_quantiles_and_means(name, file, options):
    real = read_trace(DATA / file, **options)
    made = generate(name, num_requests=50_000, seed=1)
    for column in ("prompt_tokens", "output_tokens"):
        a, b = getattr(real, column), getattr(made, column)
        assert b.mean() == pytest.approx(a.mean(), rel=0.04)
        for p in (10, 25, 50, 75, 90, 95, 99):
            assert np.percentile(b, p) == pytest.approx(np.percentile(a, p), rel=0.06, abs=2), (column, p)


@needs_data
def test_azure_conv_rises_and_falls_like_the_hour_it_was_fitted_to():
    real = read_trace(DATA / "azure-2023/AzureLLMInferenceTrace_conv.csv.gz")
    made = generate("azure-conv", num_requests=len(real), seed=1)
    assert describe(made).interarrival_cv == pytest.approx(1.09, abs=0.05)
    assert describe(made).peak_minute_rate == pytest.approx(describe(real).peak_minute_rate, rel=0.1)
    edges = np.linspace(0, 3500, 8)
    assert np.histogram(made.arrival, edges)[0] == pytest.approx(np.histogram(real.arrival, edges)[0], rel=0.08)
    steady = generate("azure-conv", num_requests=len(real), seed=1, steady=True)
    assert describe(steady).peak_minute_rate < 0.9 * describe(real).peak_minute_rate


@needs_data
def test_azure_code_comes_in_bursts_with_minutes_of_silence():
    real = read_trace(DATA / "azure-2023/AzureLLMInferenceTrace_code.csv.gz")
    made = [generate("azure-code", num_requests=len(real), seed=s) for s in range(10)]
    assert np.mean([describe(t).interarrival_cv for t in made]) == pytest.approx(13.15, rel=0.12)
    assert np.mean([describe(t).peak_minute_rate for t in made]) == pytest.approx(10.5, rel=0.25)

    def silent(trace):
        return (np.bincount((trace.arrival // 60).astype(int)) == 0).mean()

    assert np.mean([silent(t) for t in made]) == pytest.approx(silent(real), abs=0.06)


@needs_data
def test_mooncake_conversations_share_prefixes_like_the_real_ones():
    real = describe(read_trace(DATA / "mooncake/conversation_trace.jsonl.gz"))
    assert real.prefix_hit_ratio == pytest.approx(0.373, abs=0.001)
    made = [describe(generate("mooncake-conversation", num_requests=real.requests, seed=s)) for s in range(5)]
    assert np.mean([d.prefix_hit_ratio for d in made]) == pytest.approx(real.prefix_hit_ratio, abs=0.02)
    assert np.mean([d.prompt_tokens.mean for d in made]) == pytest.approx(real.prompt_tokens.mean, rel=0.06)
    assert np.mean([d.rate for d in made]) == pytest.approx(real.rate, rel=0.01)
    assert all(d.block_tokens == 512 for d in made)


@needs_data
@pytest.mark.parametrize(("name", "model"), [("reasoning", "deepseek-r1"), ("servegen-large", "m-large")])
def test_client_mixes_have_the_lengths_and_the_day_of_the_real_clients(name, model):
    days = 1 if name == "reasoning" else 14
    rate = 1.5 / days
    real = read_trace(DATA / f"servegen/{model}-trace.csv.gz", seed=1, duration_s=86_400.0 * days, rate=rate)
    made = generate(name, num_requests=len(real), rate=rate, seed=1)
    for column in ("prompt_tokens", "output_tokens"):
        a, b = getattr(real, column), getattr(made, column)
        assert b.mean() == pytest.approx(a.mean(), rel=0.05), column
        for p in (25, 50, 75, 90, 99):
            assert np.percentile(b, p) == pytest.approx(np.percentile(a, p), rel=0.1, abs=5), (column, p)
    edges = np.linspace(0, 86_400, 9)
    mine, theirs = (np.histogram(t.arrival % 86_400, edges)[0] / len(t) for t in (made, real))
    assert mine == pytest.approx(theirs, rel=0.15)


@needs_data
def test_the_shipped_presets_are_what_the_fit_writes(tmp_path):
    from traces.generate.fit import FITS, write
    from traces.generate.presets import FOLDER

    for name in ("azure-conv", "azure-code", "arxiv-summarization", "sharegpt", "sharegpt-long", "reasoning"):
        assert write(name, FITS[name](DATA), tmp_path).read_text() == (FOLDER / f"{name}.yaml").read_text()
