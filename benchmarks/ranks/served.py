"""`decant serve` over vLLM, and a client on the same machine whose answers the kernel stamps."""

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx

from decant.arrival import receive, stamp_arrivals

CLIENTS = 4
SLOW_RANK = 1

_START_LIMIT_S = 300.0
_STOP_LIMIT_S = 30.0
_ANSWER_LIMIT_S = 120.0
_LOG_TAIL = 4000
_READ_BYTES = 65536
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_REQUEST_ID = re.compile(rb"(?i)\r\nx-request-id: *(\S+)")
_TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')
_LAST_EVENT = b"data: [DONE]"
_QUESTION = "the cat sat on the mat"


@dataclass(frozen=True, slots=True)
class Served:
    """A running server, the file that says for how long the slow rank is kept busy, and its log."""

    base_url: str
    model: str
    delay: Path
    log: Path

    @property
    def log_tail(self) -> str:
        """How its log ends, for the message of a failure."""
        return self.log.read_text(errors="replace")[-_LOG_TAIL:]

    def get(self, path: str) -> dict[str, Any]:
        """A document of the server's."""
        answer = httpx.get(self.base_url + path, timeout=_ANSWER_LIMIT_S, trust_env=False)
        return answer.raise_for_status().json()


@dataclass(frozen=True, slots=True)
class Streamed:
    """What a client saw of one answer: when its request left, and when its last event came."""

    request_id: str
    tokens: int
    sent_s: float
    ended_s: float


@dataclass(frozen=True, slots=True)
class Answer:
    """One timing record, and when the client's request left and its answer's last event came.

    Seconds on the machine's monotonic clock, which the record's `actual_s` is read from, too.
    """

    record: dict[str, Any]
    sent_s: float
    ended_s: float

    @property
    def e2e_s(self) -> float:
        """What the client waited."""
        return self.ended_s - self.sent_s

    @property
    def way_in_s(self) -> float:
        """From the send to where the server's account begins."""
        return self.record["actual_s"] - self.sent_s

    @property
    def way_out_s(self) -> float:
        """From the end of the server's account to the arrival at the client."""
        return self.ended_s - self.record["actual_s"] - self.record["shards"]["latency"]["total_s"]

    @property
    def unexplained_s(self) -> float:
        """What no stage of the record accounts for."""
        stages = self.record["shards"]["latency"]
        told = (value for name, value in stages.items() if name not in ("total_s", "residual_s"))
        return self.e2e_s - sum(value or 0.0 for value in told)

    def per_step_ms(self, rank: int, kind: str) -> float:
        """Milliseconds per engine step that a rank spent on something."""
        return self.record["ranks"][rank][kind] / self.record["shards"]["steps"] * 1e3


@contextmanager
def serving(
    asked: argparse.Namespace, folder: Path, *, timed: bool = True, delayed: bool = False
) -> Generator[Served]:
    """The model behind `decant serve` while the context lasts; `folder` is its own."""
    folder.mkdir(exist_ok=True)
    ready, delay, log = folder / "ready.json", folder / "delay", folder / "serve.log"
    ready.unlink(missing_ok=True)
    delay.write_text("0")
    command = [sys.executable, "-m", "decant", "serve", asked.model, "--engine", "vllm", "--port", "0"]
    command += ["--engine-python", asked.engine_python, "--tensor-parallel-size", str(asked.ranks)]
    command += ["--context", "512", "--parallel", str(CLIENTS), "--ready-file", str(ready)]
    command += ["--shard-timing", "on" if timed else "off"]
    environment = os.environ | ({"DECANT_SHARDS_DELAY": f"{SLOW_RANK}:{delay}"} if delayed else {})
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        told = _wait(process, ready, log)
        yield Served(told["base_url"].removesuffix("/v1"), told["model"], delay, log)
    finally:
        process.terminate()
        try:
            process.wait(timeout=_STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], ready: Path, log: Path) -> dict[str, Any]:
    give_up_at_s = time.monotonic() + _START_LIMIT_S
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > give_up_at_s:
            raise SystemExit(log.read_text(errors="replace")[-_LOG_TAIL:])
        time.sleep(0.05)
    return json.loads(ready.read_text())


class Client:
    """One connection to a server, with as little between the socket and the stamp as can be."""

    def __init__(self, served: Served) -> None:
        self._served = served
        url = httpx.URL(served.base_url)
        assert url.port is not None
        self._socket = socket.create_connection((url.host, url.port), timeout=_ANSWER_LIMIT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stamp_arrivals(self._socket)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._socket.close()

    def stream(self, tokens: int) -> Streamed:
        """One answer of at most that many tokens; SystemExit, with the server's log, where there is none."""
        received, sent_s, ended_s = self._exchange(_body(self._served.model, tokens))
        named, counted = _REQUEST_ID.search(received), _TOKENS.findall(received)
        if named is None or not counted:
            raise SystemExit(f"{received.decode(errors='replace')}\n{self._served.log_tail}")
        return Streamed(named[1].decode(), int(counted[-1]), sent_s, ended_s)

    def _exchange(self, body: bytes) -> tuple[bytes, float, float]:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
        request = f"{head}content-type: application/json\r\n\r\n".encode() + body
        sent_s = time.perf_counter()
        self._socket.sendall(request)
        received, ended_s = b"", sent_s
        while not is_whole(received):
            part, arrived_s = receive(self._socket, _READ_BYTES)
            if not part:
                raise SystemExit(f"the server closed the connection\n{self._served.log_tail}")
            # An answer is over with its last event; that no chunk follows may be said later.
            ended_s = ended_s if _LAST_EVENT in received else arrived_s
            received += part
        return received, sent_s, ended_s


def is_whole(received: bytes) -> bool:
    """Whether an answer has come to its end: a stream with its last chunk, a refusal with its length."""
    head, _, body = received.partition(b"\r\n\r\n")
    length = _LENGTH.search(head)
    if length is None:
        return body.endswith(b"0\r\n\r\n")
    return len(body) >= int(length[1])


def ask(client: Client, served: Served, tokens: int) -> Answer:
    """One streamed answer and the server's record of it."""
    seen = client.stream(tokens)
    return Answer(served.get(f"/v1/requests/{seen.request_id}/timing"), seen.sent_s, seen.ended_s)


def _body(model: str, tokens: int) -> bytes:
    messages = [{"role": "user", "content": _QUESTION}]
    body = {"model": model, "messages": messages, "temperature": 0, "stream": True, "max_tokens": tokens}
    return json.dumps({**body, "stream_options": {"include_usage": True}}).encode()
