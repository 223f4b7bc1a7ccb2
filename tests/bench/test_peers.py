"""Comparing clients: what is read from their records, and which rate they hold."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from decant_bench.scripted_engine import Lateness, SentAnswer
from peers.clients import Call, Client, Load, PeerError, aiperf, decant, guidellm, run_client, vllm
from peers.comparison import RateStep, error_row, highest_rate, rate_step

ON_TIME = Lateness(10, 0.0, 0.0, 0.0)
PYTHON = Path("/none/bin/python")
LOAD = Load("http://127.0.0.1:9", "m", Path(), 2, 1, streams=1)


def calls(ttfts_s: Sequence[float], *, every_s: float = 0.01) -> list[Call]:
    return [Call(every_s * place, ttft_s, (0.01, 0.012)) for place, ttft_s in enumerate(ttfts_s)]


def sent(n: int, *, ttft_s: float = 0.1) -> list[SentAnswer]:
    """What the engine stamped of so many answers."""
    times_s = tuple(ttft_s + 0.01 * place for place in range(3))
    return [SentAnswer("", 0.0, times_s, times_s)] * n


def test_errors_are_percentiles_minus_the_true_ones_without_the_requests_that_opened_connections() -> None:
    # The engine was asked once before the load, and was itself 5 ms late with one stream's first request.
    stamped = [*sent(1, ttft_s=7.0), *sent(2, ttft_s=0.105), *sent(2)]
    row = error_row(decant(1), 2, calls([9.0, 9.0, 0.101, 0.103]), stamped)

    assert (row.n, row.ttft_p50_s) == (2, pytest.approx(0.002))
    assert (row.gap_p50_s, row.mean_gap_p99_s) == (pytest.approx(0.001), pytest.approx(0.001))
    assert error_row(guidellm(PYTHON), 1, calls([0.1, 0.1]), sent(2)).gap_p99_s is None
    with pytest.raises(PeerError, match="0 requests of 2 streams completed: too few"):
        error_row(decant(1), 2, [], sent(2))


def test_what_the_engine_was_late_itself_is_not_the_clients_error() -> None:
    row = error_row(decant(1), 1, calls([0.15] * 3), sent(3, ttft_s=0.15))
    assert (row.ttft_p50_s, row.ttft_p99_s) == (pytest.approx(0.0), pytest.approx(0.0))


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
    assert rate_step("x", 100.0, 100, found, sent=sent(100), bound_s=0.01).why_not == why_not


@pytest.mark.parametrize("limit", [30.0, 100.0, 777.0])
def test_the_highest_rate_is_found_from_either_side(limit: float) -> None:
    def probe(rate: float) -> RateStep:
        return RateStep("x", rate, rate, 1, 0.0, "" if rate <= limit else "too fast", ON_TIME)

    best, steps = highest_rate(probe, start=100.0)
    assert best is not None
    assert limit / 1.2 < best <= limit
    assert len(steps) < 12
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


def test_a_search_that_may_not_go_on_says_what_held_so_far() -> None:
    def probe(rate: float) -> RateStep:
        return RateStep("x", rate, rate, 1, 0.0, "", ON_TIME)

    best, steps = highest_rate(probe, start=100.0, may_go_on=lambda: False)
    assert (best, len(steps)) == (100.0, 1)


def test_a_client_that_is_not_done_in_time_is_ended_with_its_processes(tmp_path: Path) -> None:
    left = tmp_path / "left"
    script = f"sleep 0.6 && touch {left} & sleep 60"
    client = Client("slow", frozenset(), lambda _, __: ["sh", "-c", script], lambda _: [])
    with pytest.raises(PeerError, match="slow: not done after 0 s"):
        run_client(client, LOAD, tmp_path, limit_s=0.2)
    time.sleep(0.8)
    assert not left.exists()


def test_a_client_that_cannot_be_started_is_named(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="vllm bench serve: /none/bin/python: No such file"):
        run_client(vllm(PYTHON), LOAD, tmp_path, limit_s=5)
