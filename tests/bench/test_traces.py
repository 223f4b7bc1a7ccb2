import json
from pathlib import Path

import pytest

from decant.errors import DataError
from decant_bench.traces import TraceRequest, read_trace


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_a_mooncake_trace_keeps_its_gaps_lengths_and_blocks(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 27_482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]},
        {"timestamp": 30_535, "input_length": 6472, "output_length": 26, "hash_ids": [46, 2366]},
    ]
    path = write(tmp_path, "t.jsonl", "\n".join(json.dumps(row) for row in rows))

    first, second = read_trace(path)

    assert first == TraceRequest(0.0, 6955, 52, (46, 47))
    assert (second.offset_s, second.blocks) == (pytest.approx(3.053), (46, 2366))


def test_burstgpt_requests_that_failed_are_left_out(tmp_path: Path) -> None:
    head = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    lines = "5,ChatGPT,472,18,490,Conversation log\n7,ChatGPT,9,0,9,API log\n45,GPT-4,1087,230,1317,API log\n"

    read = read_trace(write(tmp_path, "b.csv", head + lines))

    assert read == [TraceRequest(0.0, 472, 18), TraceRequest(40.0, 1087, 230)]


@pytest.mark.parametrize("zone", ["", "+00:00"])
def test_an_azure_trace_has_times_of_day_in_tenths_of_microseconds(tmp_path: Path, zone: str) -> None:
    lines = [f"2023-11-16 18:15:46.6805900{zone},374,44", f"2023-11-16 18:15:50.9951690{zone},396,109"]
    path = write(tmp_path, "a.csv", "\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]))

    first, second = read_trace(path)

    assert (first.prompt_tokens, second.completion_tokens) == (374, 109)
    assert second.offset_s == pytest.approx(4.314579)


def test_our_own_request_log_is_replayed_in_order_of_arrival_at_any_speed(tmp_path: Path) -> None:
    rows = [
        {"actual_s": 12.0, "prompt_tokens": 3, "completion_tokens": 4},
        {"actual_s": 10.0, "prompt_tokens": 1, "completion_tokens": 2},
        {"actual_s": 11.0, "prompt_tokens": None, "completion_tokens": None, "error_kind": "timeout"},
    ]
    path = write(tmp_path, "log.jsonl", "\n".join(json.dumps(row) for row in rows))

    assert read_trace(path, speed=2.0) == [TraceRequest(0.0, 1, 2), TraceRequest(1.0, 3, 4)]


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        (
            "m.jsonl",
            '{"timestamp": 0, "input_length": 1, "output_length": 1}\n{"a": 1}',
            r":2: lacks",
        ),
        (
            "b.csv",
            "Timestamp,Request tokens,Response tokens\n1,2,3\n2,many,3\n",
            r"b\.csv:3: invalid",
        ),
        ("a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\nyesterday,1,2\n", r"a\.csv:2: Invalid isoformat"),
        ("x.csv", "when,what\n1,2\n", r"x\.csv:1: not a trace we know"),
        ("x.jsonl", '{"when": 1}', r"x\.jsonl:1: not a trace we know"),
        ("n.jsonl", '{"timestamp": 0, "input_length": -1, "output_length": 1}', r":1: a negative number"),
    ],
)
def test_a_wrong_line_is_named_by_its_number(tmp_path: Path, name: str, text: str, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        read_trace(write(tmp_path, name, text))
