"""What one request may take, and how a server goes."""

import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.timeout(240)

Serve = Callable[..., Any]
SLOW = {"match": "slow", "chunks": ["first", " last"], "gaps_s": [30.0]}


@pytest.fixture(scope="module")
def server(serve_for_session: Serve, write_script: Callable[..., Path]) -> Iterator[Any]:
    """A server with a small body limit."""
    script = write_script(SLOW, {"chunks": ["fine"]})
    with serve_for_session(script, "--body-limit-bytes", 10_000, "--parallel", 1) as running:
        yield running


def ask(server: Any, question: str, **headers: str) -> httpx.Response:
    body = {"model": server.model, "messages": [{"role": "user", "content": question}]}
    return server.http.post("/v1/chat/completions", json=body, headers=headers)


def test_a_client_may_set_how_long_it_waits(server: Any) -> None:
    started = time.monotonic()
    response = ask(server, "slow", **{"X-Decant-Timeout-S": "0.2"})
    assert time.monotonic() - started < 5
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "deadline_exceeded"
    assert server.timing(response)["error_kind"] == "deadline_exceeded"
    assert ask(server, "hi").status_code == 200


def test_the_deadline_of_a_stream_is_its_last_event(server: Any) -> None:
    body = {"model": server.model, "messages": [{"role": "user", "content": "slow"}], "stream": True}
    response = server.http.post("/v1/chat/completions", json=body, headers={"X-Decant-Timeout-S": "0.3"})
    *_, last = [line for line in response.text.split("\n\n") if line]
    assert response.status_code == 200
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "deadline_exceeded"


@pytest.mark.parametrize("given", ["soon", "0", "-1", "nan", "inf", ""])
def test_a_deadline_that_is_no_time_is_refused(server: Any, given: str) -> None:
    response = ask(server, "hi", **{"X-Decant-Timeout-S": given})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "X-Decant-Timeout-S"


def test_a_body_over_the_limit_is_a_413(server: Any) -> None:
    response = ask(server, "x" * 20_000)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"
    parts = (b"x" * 4_000 for _ in range(5))
    assert server.http.post("/v1/chat/completions", content=parts).status_code == 413


def test_headers_over_the_limit_are_a_431(server: Any) -> None:
    assert ask(server, "hi", **{"x-long": "a" * 70_000}).status_code == 431


def test_a_head_without_an_end_is_cut_off(server: Any) -> None:
    port = httpx.URL(server.base_url).port
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\n")
        answer = b""
        for _ in range(60):
            try:
                connection.sendall(b"x-more: " + b"a" * 16_000 + b"\r\n")
                time.sleep(0.01)
            except OSError:
                break
        try:
            answer = connection.recv(100)
        except ConnectionResetError:
            answer = b"HTTP/1.1 431"
    assert answer.startswith(b"HTTP/1.1 431")


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/nowhere", "/v1/models/another"])
def test_every_answer_carries_the_requests_id(server: Any, path: str) -> None:
    response = server.http.get(path, headers={"x-request-id": "mine"})
    assert response.headers["x-request-id"] == "mine"
    assert len(server.http.get(path).headers["x-request-id"]) == 32


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/v1/chat/completions", 405)]
)
def test_what_is_not_there_is_an_error_in_the_shape_of_openai(
    server: Any, method: str, path: str, status: int
) -> None:
    response = server.http.request(method, path)
    assert response.status_code == status
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


def test_readiness_goes_before_the_listener(serve: Serve, write_script: Callable[..., Path]) -> None:
    with serve(write_script({"chunks": ["fine"]}), "--ready-gap-s", 60) as server:
        assert server.http.get("/ready").status_code == 200
        server.process.send_signal(signal.SIGTERM)
        give_up_at = time.monotonic() + 10
        while server.http.get("/ready").status_code == 200 and time.monotonic() < give_up_at:
            time.sleep(0.02)
        assert server.http.get("/ready").json() == {"ready": False, "state": "draining"}
        assert server.chat("hi").status_code == 200
        # A second signal does not wait for the balancer any longer.
        assert server.terminate() == 0


def test_a_stream_that_outlasts_the_drain_ends_with_an_error(
    serve: Serve, write_script: Callable[..., Path]
) -> None:
    with serve(write_script(SLOW), "--drain-limit-s", 0.4) as server, ThreadPoolExecutor() as pool:
        answer = pool.submit(lambda: server.chat("slow", stream=True).text)
        give_up_at = time.monotonic() + 10
        while server.http.get("/health").json()["requests"]["running"] == 0 and time.monotonic() < give_up_at:
            time.sleep(0.02)
        started = time.monotonic()
        assert server.terminate() == 0
        assert time.monotonic() - started < 10
        *_, last = [line for line in answer.result().split("\n\n") if line]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down"
