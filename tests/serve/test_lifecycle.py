"""Starting, draining, dying: what happens to the processes, and to the requests in them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.timeout(240)

RunDecant = Callable[..., Any]
Serve = Callable[..., Any]
Script = Callable[..., Path]

QUICK = {"chunks": ["fine"]}


def slow(text: str, *, seconds: float) -> dict[str, Any]:
    """An answer of two chunks, the second after some time."""
    return {"match": text, "chunks": ["first", " last"], "gaps_s": [seconds]}


def streamed(server: Any, question: str) -> str:
    """The raw text of a streamed answer."""
    return server.chat(question, stream=True).text


def when_busy(server: Any, *, waiting: int = 0) -> None:
    """Returns once the engine has a request and as many more wait."""
    give_up_at = time.monotonic() + 60
    expected = {"running": 1, "waiting": waiting}
    while server.http.get("/health").json()["requests"] != expected and time.monotonic() < give_up_at:
        time.sleep(0.01)


def test_sigterm_lets_answers_finish_and_leaves_nothing_behind(
    serve: Serve, write_script: Script, ends: Callable[[int], bool]
) -> None:
    with serve(write_script(slow("hi", seconds=0.8))) as server, ThreadPoolExecutor() as pool:
        engine = server.engine_process()
        answer = pool.submit(streamed, server, "hi")
        when_busy(server)
        assert server.terminate() == 0
        assert " last" in answer.result()
        assert answer.result().endswith("data: [DONE]\n\n")
        assert ends(engine)


def test_an_engine_ends_when_its_gateway_is_killed(
    serve: Serve, write_script: Script, ends: Callable[[int], bool]
) -> None:
    with serve(write_script(QUICK)) as server:
        engine = server.engine_process()
        server.process.send_signal(signal.SIGKILL)
        server.process.wait()
        assert ends(engine)


def test_a_crash_in_a_stream_is_an_error_event_and_the_engine_comes_back(
    serve: Serve, write_script: Script
) -> None:
    crashing = {"match": "crash", "chunks": ["first"], "end": "crash"}
    with serve(write_script(crashing, QUICK)) as server:
        *_, last = [line for line in streamed(server, "crash").split("\n\n") if line]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "engine_unavailable"
        give_up_at = time.monotonic() + 60
        while (answer := server.chat("hi")).status_code == 503 and time.monotonic() < give_up_at:
            time.sleep(0.05)
        assert answer.json()["choices"][0]["message"]["content"] == "fine"
        assert server.http.get("/health").json()["models"][server.model]["restarts"] == 1


def test_a_killed_engine_gives_a_retryable_503_before_the_first_byte(
    serve: Serve, write_script: Script
) -> None:
    with serve(write_script({"chunks": ["late"], "ttft_s": 30})) as server, ThreadPoolExecutor() as pool:
        answer = pool.submit(server.chat, "hi")
        when_busy(server)
        os.kill(server.engine_process(), signal.SIGKILL)
        response = answer.result()
        assert response.status_code == 503
        assert response.headers["x-should-retry"] == "true"
        assert "retry-after" in response.headers


def test_a_client_that_leaves_frees_its_slot(serve: Serve, write_script: Script) -> None:
    with serve(write_script(slow("long", seconds=60), QUICK), "--parallel", 1) as server:
        body = {"model": server.model, "messages": [{"role": "user", "content": "long"}], "stream": True}
        with httpx.stream("POST", f"{server.base_url}/chat/completions", json=body) as response:
            next(response.iter_text())
        started = time.monotonic()
        assert server.chat("hi").json()["choices"][0]["message"]["content"] == "fine"
        assert time.monotonic() - started < 5


def test_requests_over_the_queue_are_turned_away(serve: Serve, write_script: Script) -> None:
    script = write_script(slow("long", seconds=1.5), QUICK)
    with serve(script, "--parallel", 1, "--queue-limit", 1) as server, ThreadPoolExecutor() as pool:
        first = pool.submit(streamed, server, "long")
        when_busy(server)
        second = pool.submit(server.chat, "hi")
        when_busy(server, waiting=1)
        refused = server.chat("hi")
        assert refused.status_code == 429
        assert refused.headers["retry-after"] == "1"
        assert refused.json()["error"]["code"] == "queue_full"
        assert "[DONE]" in first.result()
        assert second.result().status_code == 200
        assert server.timing(second.result())["queue_s"] > 0.2


def test_an_engine_that_takes_too_long_is_a_504(serve: Serve, write_script: Script) -> None:
    with serve(write_script({"chunks": ["late"], "ttft_s": 30}), "--request-limit-s", 0.2) as server:
        response = server.chat("hi")
        assert response.status_code == 504
        assert response.json()["error"]["type"] == "timeout_error"


def test_an_engines_own_error_comes_through_in_the_shape_of_openai(
    serve: Serve, write_script: Script
) -> None:
    limited = {"status": 429, "message": "slow down", "headers": {"retry-after": "7"}}
    with serve(write_script(limited)) as server:
        response = server.chat("hi")
        assert response.status_code == 429
        assert response.headers["retry-after"] == "7"
        assert response.json()["error"]["message"] == "slow down"


def test_every_request_leaves_a_line_in_the_timing_log(
    serve: Serve, write_script: Script, tmp_path: Path
) -> None:
    log = tmp_path / "timing.jsonl"
    answer = {"chunks": ["a", "b", "c"], "ttft_s": 0.2, "gaps_s": [0.1]}
    with serve(write_script(answer), "--timing-log", log) as server:
        server.chat("hi", stream=True)
        server.chat("hi", model="another")
    good, bad = [json.loads(line) for line in log.read_text().splitlines()]
    assert good["ttft_s"] >= 0.2
    assert good["e2e_s"] - good["ttft_s"] >= 0.15
    assert len(good["chunk_times_s"]) == good["completion_tokens"] == 3
    assert (bad["status"], bad["error_kind"]) == (404, "model_not_found")


def test_a_busy_port_is_one_clear_line(run_decant: RunDecant, write_script: Script) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_decant("serve", write_script(QUICK), "--port", port)
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_engine_that_dies_at_its_start_is_quoted(
    run_decant: RunDecant, tiny_gguf: Path, tmp_path: Path
) -> None:
    truncated = tmp_path / "truncated.gguf"
    truncated.write_bytes((tiny_gguf / "model.gguf").read_bytes()[:-20_000])
    done = run_decant("serve", truncated, "--port", "0")
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("decant: the llamacpp engine ended with exit code 1; its last lines:")
    assert "corrupted or incomplete" in last


def test_sigterm_while_the_engine_starts_leaves_nothing_behind(
    tmp_path: Path, tiny_folder: Path, ends: Callable[[int], bool]
) -> None:
    command = [sys.executable, "-m", "decant", "serve", str(tiny_folder), "--port", "0"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    give_up_at = time.monotonic() + 60
    while not children.read_text().split() and time.monotonic() < give_up_at:
        time.sleep(0.01)
    engine = int(children.read_text().split()[0])
    process.terminate()
    assert process.wait(timeout=20) == 128 + signal.SIGTERM
    assert ends(engine)
