"""Comparing clients: what is read from their records, and which rate they hold."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from decant_bench.scripted_engine import Lateness
from peers.clients import Call, PeerError, aiperf, decant, guidellm, run_client, vllm
from peers.comparison import RateStep, error_row, highest_rate, rate_step
from peers.truth import Truth

TRUTH = Truth(ttft_s=0.1, gap_s=0.01, tokens=3)
ON_TIME = Lateness(10, 0.0, 0.0, 0.0)
PYTHON = Path("/none/bin/python")


def calls(ttfts_s: Sequence[float], *, every_s: float = 0.01) -> list[Call]:
    return [Call(every_s * place, ttft_s, (0.01, 0.012)) for place, ttft_s in enumerate(ttfts_s)]


def test_errors_are_percentiles_minus_the_truth_without_the_requests_that_opened_connections() -> None:
    row = error_row(decant(1), 2, calls([9.0, 9.0, 0.101, 0.103]), truth=TRUTH, engine=ON_TIME)

    assert (row.n, row.ttft_p50_s) == (2, pytest.approx(0.002))
    assert (row.gap_p50_s, row.mean_gap_p99_s) == (pytest.approx(0.001), pytest.approx(0.001))
    assert error_row(guidellm(PYTHON), 1, calls([0.1, 0.1]), truth=TRUTH, engine=ON_TIME).gap_p99_s is None


@pytest.mark.parametrize(
    ("found", "why_not"),
    [
        (calls([0.101] * 100), ""),
        (calls([0.101] * 99), "1 of 100 requests did not complete"),
        (calls([0.101] * 100, every_s=0.011), "offered 91/s"),
        (calls([0.101] * 90 + [0.2] * 10), "first token p99 off by 100.0 ms"),
    ],
)
def test_a_client_holds_a_rate_when_it_offers_it_and_measures_it(found: list[Call], why_not: str) -> None:
    assert rate_step("x", 100.0, 100, found, truth=TRUTH, engine=ON_TIME).why_not == why_not


@pytest.mark.parametrize("limit", [30.0, 100.0, 777.0])
def test_the_highest_rate_is_found_from_either_side(limit: float) -> None:
    def probe(rate: float) -> RateStep:
        return RateStep("x", rate, rate, 1, 0.0, "" if rate <= limit else "too fast", ON_TIME)

    best, steps = highest_rate(probe, start=100.0)
    assert best is not None
    assert limit / 1.2 < best <= limit
    assert len(steps) < 10
    assert highest_rate(lambda rate: RateStep("x", rate, 0, 0, None, "down", ON_TIME), start=8.0)[0] is None


def test_the_records_of_each_client_are_read(tmp_path: Path) -> None:
    row = {"error_kind": None, "actual_s": 1.0, "ttft_s": 0.1, "chunk_times_s": [0.1, 0.12]}
    (tmp_path / "run").mkdir()
    (tmp_path / "run/requests.jsonl").write_text(json.dumps(row) + "\n")
    detail = {"start_times": [1.0, 2.0], "ttfts": [0.1, 0.0], "itls": [[0.02], []], "errors": ["", "no"]}
    (tmp_path / "vllm.json").write_text(json.dumps(detail))
    done = {"request_start_time": 1.0, "time_to_first_token_ms": 100.0, "inter_token_latency_ms": 20.0}
    requests = {"benchmarks": [{"requests": {"successful": [done]}}]}
    (tmp_path / "guidellm.json").write_text(json.dumps(requests))
    metrics = {"time_to_first_token": {"value": 100.0}, "inter_chunk_latency": {"value": [20.0]}}
    profile = {"metadata": {"request_start_ns": 10**9}, "metrics": metrics}
    (tmp_path / "profile_export.jsonl").write_text(json.dumps(profile) + "\n")

    for client in (decant(1), vllm(PYTHON), guidellm(PYTHON), aiperf(PYTHON)):
        [call] = client.read(tmp_path)
        assert (call.start_s, call.ttft_s) == (1.0, pytest.approx(0.1)), client.name
        assert call.gaps_s == (pytest.approx(0.02),), client.name


def test_a_client_that_cannot_be_started_is_named(tmp_path: Path) -> None:
    from peers.clients import Load

    load = Load("http://127.0.0.1:9", "m", tmp_path, 2, 1, streams=1)
    with pytest.raises(PeerError, match="vllm bench serve: /none/bin/python: No such file"):
        run_client(vllm(PYTHON), load, tmp_path, limit_s=5)
