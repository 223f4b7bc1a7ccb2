"""What the measurements over ranks make of answers: tables, what is unexplained, and the ratio."""

from typing import Any

import pytest

from ranks.cost import Pair, ratio_line
from ranks.delays import delay_table, residual_lines
from ranks.served import Answer, is_whole

STAGES = (
    "gateway_s",
    "frontend_s",
    "engine_queue_s",
    "prefill_s",
    "decode_s",
    "others_s",
    "gaps_s",
    "output_s",
)


def answer(*, slack_ms: float, delay_ms: float, way_in_s: float = 0.0, residual_s: float = 0.0) -> Answer:
    """One step over two ranks: rank 1 waits `slack_ms` for rank 0, or, delayed, lets it wait for the rest."""
    waits_ms = (max(0.0, delay_ms - slack_ms), max(0.0, slack_ms - delay_ms))
    ranks = [
        {"compute_s": (1.0 + (delay_ms if rank else 0.0)) / 1e3, "wait_s": waits_ms[rank] / 1e3}
        for rank in range(2)
    ]
    latency: dict[str, Any] = {
        **dict.fromkeys(STAGES, 0.0125),
        "engine_queue_s": None,
        "residual_s": residual_s,
    }
    latency["total_s"] = 7 * 0.0125 + residual_s
    record = {"actual_s": 5.0 + way_in_s, "ranks": ranks, "shards": {"steps": 1, "latency": latency}}
    return Answer(record, sent_s=5.0, ended_s=5.0 + way_in_s + latency["total_s"])


def test_a_delay_is_what_one_wait_grew_by_and_the_other_shrank_by() -> None:
    answers = {
        delay_s: [answer(slack_ms=slack_ms, delay_ms=delay_s * 1e3) for slack_ms in (0.5, 0.7)]
        for delay_s in (0.0, 0.005, 0.02)
    }
    row = next(line for line in delay_table(answers) if line.startswith("| 5 ms"))
    grown, waited, shrank, others, both = [cell.strip() for cell in row.split("|")[2:-1]]
    assert grown.startswith("5.00 (+0.0%)")
    assert waited.startswith("4.40 (-12.0%)")
    assert shrank.startswith("-0.60,")
    assert others.startswith("0.00,")
    assert both.startswith("5.00 (+0.0%)")


def test_what_no_stage_explains_is_placed() -> None:
    answers = [
        answer(slack_ms=0, delay_ms=0, way_in_s=way_in_s, residual_s=residual_s)
        for way_in_s, residual_s in ((0.0005, 0.0), (0.05, 0.0), (0.0, 0.03))
    ]
    lines = residual_lines(answers)
    assert "1 of 3 answers are within" in lines[0]
    assert "| on the way in | 0.50 | 50.00 | 50.00 |" in lines
    assert "| within | 0.00 | 30.00 | 30.00 |" in lines


def test_the_ratio_is_that_of_rounds_beside_each_other() -> None:
    pairs = [Pair(on=0.99 * speed, off=speed) for speed in (100.0, 300.0, 50.0)]
    told = ratio_line(pairs, requests=8)
    assert told.startswith("Throughput with rank timing on is 0.990 of off (0.990 to 0.990, 95 %")


@pytest.mark.parametrize(
    ("received", "whole"),
    [
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n", False),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", True),
        (b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\n{", False),
        (b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\n{}", True),
        (b"HTTP/1.1 200 OK\r\n", False),
    ],
)
def test_an_answer_is_whole_with_its_last_chunk_or_its_length(received: bytes, *, whole: bool) -> None:
    assert is_whole(received) is whole
