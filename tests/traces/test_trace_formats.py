"""Readers: what each format means, what is said about bad rows, and that garbage never leaves a traceback."""

from __future__ import annotations

import gzip
import json
import random

import numpy as np
import pytest

from simulator.core.errors import TraceError
from traces.formats import FORMATS, read_trace

AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n2023-11-16 18:16:00.0000000,10,1\n"
)
BURST = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,1087,230,1317,API log\n"
)
VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens\n0.5,100,5\n1.5,200,6\n"
TABLE = "arrival,prompt_tokens,output_tokens,prefix_16\n0,40,5,1 2\n2.5,33,7,1 3\n"
MOONCAKE = [
    {"timestamp": 0, "input_length": 1200, "output_length": 5, "hash_ids": [0, 1, 2]},
    {"timestamp": 3000, "input_length": 1536, "output_length": 7, "hash_ids": [0, 1, 3]},
]
TIMED = [
    {"timestamp": 0.5, "input_length": 40, "output_length": 5, "hash_ids": [7, 8, 9]},
    {"timestamp": 1.5, "input_length": 32, "output_length": 5, "hash_ids": [8, 8]},
]
BAILIAN = [
    {"chat_id": 55, "parent_chat_id": -1, "timestamp": 1.0, "input_length": 33, "output_length": 9, "type": "text", "turn": 1, "hash_ids": [1, 2, 3]},
    {"chat_id": 60, "parent_chat_id": -1, "timestamp": 1.5, "input_length": 16, "output_length": 9, "type": "image", "turn": 1, "hash_ids": [2]},
    {"chat_id": 159, "parent_chat_id": 55, "timestamp": 61.1, "input_length": 70, "output_length": 4, "type": "text", "turn": 2, "hash_ids": [1, 2, 5, 6]},
    {"chat_id": 160, "parent_chat_id": 159, "timestamp": 70.0, "input_length": 90, "output_length": 4, "type": "text", "turn": 3, "hash_ids": [1, 2, 5, 6, 7]},
]  # fmt: skip
WEKA = [
    {"id": "a", "block_size": 64, "hash_id_scope": "local", "tool_tokens": 64, "system_tokens": 64, "requests": [
        {"t": 0.0, "type": "n", "model": "opus", "in": 200, "out": 5, "think_time": 0.0, "h": [[1, 3]]},
        {"t": 4.0, "type": "subagent", "requests": [
            {"t": 0.5, "type": "n", "model": "haiku", "in": 130, "out": 3, "h": [[9, 2]]},
            {"t": 2.0, "type": "n", "model": "haiku", "in": 190, "out": 3, "think_time": 1.0, "h": [[9, 2]]}]},
        {"t": 9.0, "type": "s", "model": "opus", "in": 330, "out": 5, "think_time": 2.5, "h": [[1, 3], [20, 2]]}]},
    {"id": "b", "block_size": 64, "hash_id_scope": "local", "tool_tokens": 64, "system_tokens": 64, "requests": [
        {"t": 0.0, "type": "n", "model": "opus", "in": 200, "out": 5, "h": [[1, 3]]}]},
]  # fmt: skip
SHAREGPT = [
    {"id": "x", "arrival": 2.0, "conversations": [
        {"from": "system", "tokens": 20}, {"from": "human", "tokens": 30}, {"from": "gpt", "tokens": 100},
        {"from": "human", "tokens": 10, "think_time": 4.0}, {"from": "gpt", "tokens": 7}]},
    {"id": "y", "messages": [{"role": "user", "num_tokens": 5}, {"role": "assistant", "num_tokens": 6}]},
]  # fmt: skip


def lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


GOOD = {
    "azure": ("a.csv", AZURE),
    "burstgpt": ("b.csv", BURST),
    "vidur": ("v.csv", VIDUR),
    "table": ("t.csv", TABLE),
    "mooncake": ("m.jsonl", lines(MOONCAKE)),
    "timed_trace": ("tt.jsonl", lines(TIMED)),
    "bailian": ("q.jsonl", lines(BAILIAN)),
    "weka": ("w.jsonl", lines(WEKA)),
    "sharegpt": ("s.json", json.dumps(SHAREGPT)),
}


@pytest.fixture
def write(tmp_path):
    def _write(name, text):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return _write


@pytest.mark.parametrize("name", GOOD)
def test_the_content_tells_the_format_gzipped_or_not(write, name):
    file, text = GOOD[name]
    plain = read_trace(write(file, text))
    packed = read_trace(write(file + ".gz", gzip.compress(text.encode())))
    named = read_trace(write(file, text), name, strict=True)
    for other in (packed, named):
        np.testing.assert_array_equal(plain.arrival, other.arrival)
        np.testing.assert_array_equal(plain.prompt_tokens, other.prompt_tokens)
    assert named.columns() == plain.columns()


def test_azure_times_start_at_zero_and_keep_their_ticks(write):
    trace = read_trace(write("a.csv", AZURE))
    assert trace.arrival.tolist() == [0.0, 4.314579, 13.31941]
    assert trace.prompt_tokens.tolist() == [374, 396, 10]


def test_azure_2024_has_time_zones(write):
    text = (
        AZURE.split("\n", maxsplit=1)[0]
        + "\n2024-05-10 00:00:00.009930+00:00,2162,5\n2024-05-10 00:00:01.009930+00:00,7,5\n"
    )
    assert read_trace(write("a.csv", text)).arrival.tolist() == [0.0, 1.0]


def test_mooncake_is_in_milliseconds_and_its_partial_last_block_goes(write):
    trace = read_trace(write("m.jsonl", lines(MOONCAKE)))
    assert trace.arrival.tolist() == [0.0, 3.0]
    assert trace.prefix is not None
    assert trace.prefix.block_tokens == 512
    assert [trace.prefix.row(i).tolist() for i in range(2)] == [[0, 1], [0, 1, 3]]


def test_vllm_timed_traces_are_chained_and_take_vllm_options(write):
    trace = read_trace(write("tt.jsonl", lines(TIMED)))
    assert trace.prefix is not None
    # In the file block 8 is second in one prompt, first and second in the other: three different prefixes.
    assert len(set(trace.prefix.ids.tolist())) == 4
    renamed = [{"ts": r["timestamp"] * 1000, "n": r["input_length"], "m": r["output_length"]} for r in TIMED]
    again = read_trace(
        write("r.jsonl", lines(renamed)), "timed_trace",
        sec_multiplier=0.001, label_timestamp="ts", label_input_length="n", label_output_length="m",
    )  # fmt: skip
    np.testing.assert_array_equal(again.arrival, trace.arrival)


def test_bailian_chats_become_sessions_and_content_hashes_chains(write):
    trace = read_trace(write("q.jsonl", lines(BAILIAN)))
    assert trace.session is not None
    assert trace.turn is not None
    assert trace.session.tolist() == [55, 60, 55, 55]
    assert trace.turn.tolist() == [0, 0, 1, 2]
    assert trace.slo_class is not None
    assert trace.slo_class.values().tolist() == ["text", "image", "text", "text"]
    assert trace.prefix is not None
    first, image, second, third = (trace.prefix.row(i).tolist() for i in range(4))
    assert second[:2] == first
    assert third[:4] == second
    assert image[0] not in first  # block 2 begins this prompt, and is second in the others


def test_weka_sub_agents_are_called_and_waited_for_and_ids_stay_in_their_conversation(write):
    trace = read_trace(write("w.jsonl", lines(WEKA)))
    assert trace.arrival.tolist() == [0.0, 0.0, 4.5, 6.0, 9.0]
    assert trace.session is not None
    assert trace.session.tolist() == [0, 1, 0, 0, 0]
    assert trace.turn is not None
    assert trace.after is not None
    assert trace.turn.tolist() == [0, 0, 1, 2, 3]
    assert [trace.after.take(np.array([i])).turns.tolist() for i in range(5)] == [[], [], [0], [1], [0, 2]]
    main, other, sub, _, later = (trace.prefix.row(i).tolist() for i in range(5))
    assert later[:3] == main
    assert not set(main) & set(other)
    assert not set(main) & set(sub)
    assert trace.think_time is not None
    np.testing.assert_array_equal(trace.think_time, [np.nan, np.nan, 4.5, 1.0, 3.0])
    shared = read_trace(write("w.jsonl", lines(WEKA)), share_system_prompts=True, session_rate=0.5)
    assert shared.arrival.tolist() == [0.0, 2.0, 4.5, 6.0, 9.0]
    a, b = shared.prefix.row(0).tolist(), shared.prefix.row(1).tolist()
    assert a[:2] == b[:2]
    assert a[2] != b[2]


def test_weka_a_sub_agent_began_before_it_returned(write):
    record = {
        "id": "a", "block_size": 64, "hash_id_scope": "local", "tool_tokens": 64, "system_tokens": 64, "requests": [
            {"t": 0.0, "in": 200, "out": 5, "api_time": 2.0, "h": [[1, 3]]},
            {"t": 20.0, "type": "subagent", "duration_ms": 17000, "requests": [
                {"t": 0.0, "in": 130, "out": 3, "api_time": 1.0, "h": [[9, 2]]}]},
            {"t": 15.0, "in": 260, "out": 5, "api_time": 1.0, "think_time": 13.0, "h": [[1, 4]]},
            {"t": 21.0, "in": 330, "out": 5, "think_time": 5.0, "h": [[1, 5]]}]}  # fmt: skip
    trace = read_trace(write("w.jsonl", lines([record])))
    assert trace.arrival.tolist() == [0.0, 3.0, 15.0, 21.0]  # in the background of the turn at 15 s
    assert trace.after is not None
    assert trace.think_time is not None
    assert [trace.after.take(np.array([i])).turns.tolist() for i in range(4)] == [[], [0], [0], [2, 1]]
    np.testing.assert_array_equal(trace.think_time, [np.nan, 1.0, 13.0, 5.0])


def test_sharegpt_history_grows_with_questions_and_answers(write):
    trace = read_trace(write("s.json", json.dumps(SHAREGPT)))
    assert trace.prompt_tokens.tolist() == [5, 50, 160]
    assert trace.output_tokens.tolist() == [6, 100, 7]
    assert trace.think_time is not None
    np.testing.assert_array_equal(trace.think_time, [np.nan, np.nan, 4.0])
    assert trace.prefix is not None
    assert trace.prefix.row(2)[:3].tolist() == trace.prefix.row(1).tolist()
    assert len(trace.prefix.row(2)) == 10


def test_sharegpt_text_without_counts_is_not_guessed(write):
    text = json.dumps([{"conversations": [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}]}])
    with pytest.raises(TraceError, match="no token count"):
        read_trace(write("s.json", text))


def test_vidur_length_sets_without_times_say_so(write):
    trace = read_trace(write("v.csv", "num_prefill_tokens,num_decode_tokens\n100,5\n200,6\n"))
    assert trace.arrival.tolist() == [0.0, 0.0]
    assert "every request arrives at 0 s" in trace.notes[0]


def test_a_foreign_table_is_read_by_naming_its_columns(write):
    path = write("x.csv", "req_time_ms,client,input_tokens,out\n0,13,13,199\n207,2,36,137\n")
    names = {"arrival": "req_time_ms", "prompt_tokens": "input_tokens", "output_tokens": "out", "tenant": "client"}
    trace = read_trace(path, "table", columns=names, seconds_per_unit=0.001)
    assert trace.arrival.tolist() == pytest.approx([0.0, 0.207])
    assert trace.tenant is not None
    assert trace.tenant.values().tolist() == ["13", "2"]
    with pytest.raises(TraceError, match="'input_token'"):
        read_trace(path, "table", columns=names | {"prompt_tokens": "input_token"})


def test_bad_rows_are_counted_and_named_with_line_column_and_value(write):
    text = (
        AZURE
        + "2023-11-16 18:17:00,12\n\nnonsense,5,5\n2023-11-16 18:17:01,0,5\n2023-11-16 18:17:02,5,2.5\n2023-11-16 18:17:03,5,5\n"
    )
    trace = read_trace(write("a.csv", text))
    assert len(trace) == 4
    note = trace.notes[0]
    assert note.startswith("4 of 8 rows skipped")
    assert "line 5: 2 fields instead of 3" in note
    assert "line 7: TIMESTAMP = 'nonsense'" in note
    assert "line 8: ContextTokens = '0' must be >= 1" in note
    assert "line 9: GeneratedTokens = '2.5' is not a whole number" in note
    with pytest.raises(TraceError, match=r"a\.csv:5: 2 fields"):
        read_trace(write("a.csv", text), strict=True)


def test_many_bad_rows_are_all_counted_though_a_few_are_shown(write):
    text = VIDUR + "3,0,1\n" * 40 + "4,x,1\n" * 3
    note = read_trace(write("v.csv", text)).notes[0]
    assert note.startswith("43 of 45 rows skipped")
    assert note.endswith("and 38 more")


def test_bad_json_lines_are_named(write):
    text = lines(MOONCAKE) + '{"timestamp": 1\n[1]\n' + lines([{"timestamp": 4000, "input_length": "x", "output_length": 1, "hash_ids": []}, {"timestamp": 5000, "input_length": 5, "output_length": 1, "hash_ids": ["a"]}, {"input_length": 5}])  # fmt: skip
    note = read_trace(write("m.jsonl", text), "mooncake").notes[0]
    assert note.startswith("5 of 7 rows skipped")
    for part in (
        "line 3: is not JSON",
        "line 4: is not a JSON object but list",
        "line 5: input_length = 'x'",
        "line 6: hash_ids = ['a']",
        "line 7: has no 'timestamp'",
    ):
        assert part in note
    with pytest.raises(TraceError, match=r"m\.jsonl:3"):
        read_trace(write("m.jsonl", text), "mooncake", strict=True)


def test_rows_out_of_order_are_sorted_and_reported(write):
    path = write("v.csv", VIDUR + "1.0,300,7\n")
    trace = read_trace(path)
    assert trace.prompt_tokens.tolist() == [100, 300, 200]
    assert "1 were out of order (first: line 4" in trace.notes[0]
    with pytest.raises(TraceError, match=r"v\.csv:4"):
        read_trace(path, strict=True)


def test_epoch_timestamps_are_rebased_and_reported(write):
    trace = read_trace(write("t.csv", "arrival,prompt_tokens,output_tokens\n1700000000,5,5\n1700000002,5,5\n"))
    assert trace.arrival.tolist() == [0.0, 2.0]
    assert "absolute time" in trace.notes[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a,b,c\n1,2,3\n", "fits no known format"),
        ('{"timestamp": 0, "input_length": 5, "output_length": 5}\n', "fits no known format"),  # seconds or ms?
        ("version https://git-lfs.github.com/spec/v1\noid sha256:41\nsize 279\n", "Git LFS pointer"),
        ("arrival,prompt_tokens,output_tokens\n", "no usable request"),
        ("arrival,prompt_tokens,output_tokens\nx,1,1\n", "no usable request.*line 2: arrival = 'x' is not a number"),
        (b"PAR1garbage", "Parquet"),
        (b"\x1f\x8bgarbage", "cannot be read"),
    ],
)
def test_what_is_no_trace_is_refused_with_the_reason(write, text, message):
    with pytest.raises(TraceError, match=message):
        read_trace(write("f", text))


def test_unknown_names_suggest_the_nearest(write, tmp_path):
    with pytest.raises(TraceError, match="'mooncake'"):
        read_trace(write("f", "x"), "moncake")
    with pytest.raises(TraceError, match="'block_tokens'"):
        read_trace(write("m.jsonl", lines(MOONCAKE)), block_token=16)
    with pytest.raises(TraceError, match="no such trace file"):
        read_trace(tmp_path / "absent.csv")
    with pytest.raises(TraceError, match="is a folder, not a trace file"):
        read_trace(tmp_path)
    with pytest.raises(TraceError, match="no column 'GeneratedTokens'"):
        read_trace(write("a.csv", "TIMESTAMP,ContextTokens\n1,2\n"), "azure")


def garbled(text, rng):
    data = bytearray(text.encode())
    for _ in range(rng.randint(1, 4)):
        kind, at = rng.randrange(5), rng.randrange(len(data))
        if kind == 0:
            data[at] = rng.randrange(256)
        elif kind == 1:
            del data[at : at + rng.randint(1, 20)]
        elif kind == 2:
            data[at:at] = rng.choice(
                [b"\n", b",", b'"', b"\x00", b"\xff\xfe", b"1e999", b"-", b"null", b"[", b"}", b"nan"]
            )
        elif kind == 3:
            data[at:at] = data[: rng.randint(1, 60)]
        else:
            del data[at:]
        if not data:
            data = bytearray(b"\n")
    return bytes(data)


@pytest.mark.parametrize("name", GOOD)
def test_garbled_files_give_notes_or_a_trace_error_never_a_traceback(write, name):
    file, text = GOOD[name]
    rng = random.Random(name)
    survived = 0
    for i in range(150):
        path = write(f"g-{file}", garbled(text, rng))
        for format_name in (name, None):
            try:
                trace = read_trace(path, format_name, strict=i % 3 == 0)
            except TraceError as error:
                assert str(path) in str(error)
            else:
                survived += 1
                assert len(trace) > 0
    assert survived > 10


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_random_bytes_are_refused(write, name):
    rng = random.Random(name)
    for _ in range(25):
        with pytest.raises(TraceError):
            read_trace(write("noise", rng.randbytes(rng.randint(1, 400))), name)


def test_a_million_rows_of_csv_take_seconds(tmp_path):
    import time

    n = 1_000_000
    rng = np.random.default_rng(0)
    rows = np.char.add(
        np.char.add(np.sort(rng.random(n) * 1e5).astype("U9"), ","), rng.integers(1, 9999, n).astype("U5")
    )
    (tmp_path / "big.csv").write_text(
        "arrived_at,num_prefill_tokens,num_decode_tokens\n" + ",9\n".join(rows.tolist()) + ",9\n"
    )
    start = time.process_time()
    assert len(read_trace(tmp_path / "big.csv")) == n
    assert time.process_time() - start < 5
