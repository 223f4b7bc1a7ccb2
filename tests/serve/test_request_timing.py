"""Where one request's time went, in every place that says so."""

import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from decant.timing import RequestTiming
from decant_serve.breakdown import break_down
from decant_serve.metrics import Metrics
from decant_serve.passage import Passage
from decant_serve.timing_log import TimingRecord

pytestmark = pytest.mark.timeout(240)

ANSWER = {"chunks": ["Hello", " world", " again"], "ttft_s": 0.1, "gaps_s": [0.05], "prompt_tokens": 3}
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1}}\n\n'
DONE = b"data: [DONE]\n\n"


@pytest.fixture(scope="module")
def server(serve_for_session: Callable[..., Any], write_script: Callable[..., Path]) -> Iterator[Any]:
    """A model whose times are known."""
    with serve_for_session(write_script(ANSWER)) as running:
        yield running


def events(response: Any) -> list[Any]:
    return [json.loads(line[6:]) for line in response.text.split("\n\n") if line and "[DONE]" not in line]


def test_stages_sum_to_the_total_and_the_residual_is_what_the_engine_leaves_unsaid() -> None:
    engine = {"queue_ms": 100, "prompt_ms": 200, "predicted_ms": 300}
    parts = break_down(total_s=2.0, read_s=0.1, admitted_s=0.4, engine_ended_s=1.9, engine=engine)
    assert parts.queue_s == pytest.approx(0.3)
    assert parts.engine_s == pytest.approx(1.5)
    assert sum((parts.read_s, 0.3, 1.5, parts.send_s or 0)) == pytest.approx(2.0)
    assert parts.residual_s == pytest.approx(0.9)


def test_what_a_request_did_not_reach_is_not_there() -> None:
    parts = break_down(total_s=2.0, read_s=0.5, admitted_s=None, engine_ended_s=None, engine=None)
    assert (parts.queue_s, parts.engine_s, parts.send_s, parts.residual_s) == (1.5, None, None, None)
    assert "engine" not in parts.server_timing()


def test_the_record_of_a_stream_explains_its_time(server: Any) -> None:
    record = server.timing(server.chat("hi", stream=True))
    parts = record["breakdown"]
    stages = [parts[name] for name in ("read_s", "queue_s", "engine_s", "send_s")]
    assert sum(stages) == pytest.approx(parts["total_s"])
    assert (parts["prefill_s"], parts["decode_s"]) == pytest.approx((0.1, 0.1))
    assert 0 <= parts["residual_s"] == pytest.approx(parts["engine_s"] - 0.2, abs=0.01)
    assert record["chunk_tokens"] == [1, 1, 1]
    assert datetime.fromisoformat(record["accepted_at"]).tzinfo is not None


def test_a_client_that_asks_gets_the_timing_with_its_answer(server: Any) -> None:
    server.http.headers["X-Decant-Timing"] = "1"
    try:
        whole = server.chat("hi")
        stream = server.chat("hi", stream=True)
    finally:
        del server.http.headers["X-Decant-Timing"]
    assert whole.json()["decant_timing"]["request_id"] == whole.headers["x-request-id"]
    *_, last = events(stream)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 3
    assert last["decant_timing"]["ttft_s"] >= 0.1
    assert last["decant_timing"]["breakdown"]["decode_s"] == pytest.approx(0.1)
    assert stream.text.endswith("data: [DONE]\n\n")


def test_other_clients_get_nothing_of_it(server: Any) -> None:
    assert "decant_timing" not in server.chat("hi").text
    assert "decant_timing" not in server.chat("hi", stream=True).text
    refused = server.http.post("/v1/chat/completions", json={}, headers={"X-Decant-Timing": "please"})
    assert refused.status_code == 400


def test_an_engine_without_a_usage_event_gets_one_of_ours_before_the_end() -> None:
    passage = Passage(wants_usage=False, timing=lambda: {"ttft_s": 1})
    assert passage.take(DONE, 0.0) == b'data: {"choices":[],"decant_timing":{"ttft_s":1}}\n\n' + DONE


def test_the_usage_event_is_not_rewritten_but_added_to() -> None:
    passage = Passage(wants_usage=False, timing=lambda: {"ttft_s": 1})
    assert passage.take(USAGE + DONE, 0.0) == USAGE[:-3] + b',"decant_timing":{"ttft_s": 1}}\n\n' + DONE


def test_server_timing_says_what_is_known_when_the_headers_go(server: Any) -> None:
    whole = server.chat("hi").headers["server-timing"]
    stream = server.chat("hi", stream=True).headers["server-timing"]
    assert re.search(r"prefill;dur=100\.000, decode;dur=100\.000, total;dur=\d+", whole)
    assert "queue;dur=" in stream
    assert "decode" not in stream


def test_metrics_count_requests_tokens_and_times(server: Any) -> None:
    server.chat("hi", stream=True)
    server.chat("hi", n=2)
    text = server.http.get("/metrics").text
    label = f'model="{server.model}",engine="scripted",status='
    assert re.search(rf'decant_ttft_seconds_bucket{{{label}"200",le="\+Inf"}} [1-9]', text)
    assert re.search(rf'decant_requests_total{{{label}"400",route="chat"}} [1-9]', text)
    assert re.search(rf'decant_itl_seconds_count{{{label}"200"}} [1-9]', text)
    assert f'decant_engine_up{{model="{server.model}",engine="scripted"}} 1' in text
    sample = re.compile(r'[a-z0-9_]+(\{(\w+="[^"]*",?)+\})? [0-9.e-]+')
    assert all(line.startswith("# ") or sample.fullmatch(line) for line in text.splitlines())


def record(**changes: Any) -> TimingRecord:
    values: dict[str, Any] = {"request_id": "r", "actual_s": 0.0, "status": 200, "queue_s": 0.0, **changes}
    return TimingRecord(
        timing=RequestTiming(**values),
        breakdown=break_down(total_s=1, read_s=0, admitted_s=0, engine_ended_s=1, engine=None),
        accepted_at=datetime.now(UTC),
        model='odd "name"',
        engine_name="scripted",
        route="chat",
        streamed=True,
        key=None,
        engine=None,
    )


def test_a_bucket_counts_what_is_at_or_below_its_bound() -> None:
    metrics = Metrics()
    for e2e_s in (0.001, 0.5, 700.0):
        metrics.observe(record(e2e_s=e2e_s))
    lines = [line for line in metrics.render([]).splitlines() if "e2e_seconds" in line]
    counts = {le: line.rpartition(" ")[2] for line in lines for le in re.findall(r'le="([^"]+)"', line)}
    assert (counts["0.001"], counts["0.25"], counts["0.5"], counts["600"], counts["+Inf"]) == tuple("11223")
    assert any("odd \\" in line for line in lines)


def test_a_stream_that_broke_is_no_success_in_the_metrics() -> None:
    metrics = Metrics()
    metrics.observe(record(error_kind="stream_broken"))
    assert 'status="stream_broken"' in metrics.render([])


@pytest.mark.parametrize("engine", ["transformers_server", "llamacpp_server"])
def test_a_model_engine_explains_most_of_its_time(engine: str, request: pytest.FixtureRequest) -> None:
    running = request.getfixturevalue(engine)
    for stream in (False, True):
        record = running.timing(running.chat("hello cat 12", max_tokens=6, stream=stream))
        parts = record["breakdown"]
        assert parts["prefill_s"] > 0
        assert parts["decode_s"] > 0
        assert -0.001 <= parts["residual_s"] < parts["engine_s"]
        assert record["cached_tokens"] is not None
