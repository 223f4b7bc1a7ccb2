"""The scripted engine on a port of its own: known delays, and its own stamps of how it kept them."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from decant.errors import EndpointError
from decant.processes import end_with_parent
from decant.timing import percentile

MODEL = "scripted"
_START_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class SentAnswer:
    """One streamed answer as the engine sent it, on `time.perf_counter`: the truth about its delays.

    `arrived_s` is the kernel's stamp of the request, `due_s` when the script wanted each token out and
    `sent_s` when it went. `request_id` is empty where the client gave none.
    """

    request_id: str
    arrived_s: float
    due_s: tuple[float, ...]
    sent_s: tuple[float, ...]

    @property
    def ttft_s(self) -> float:
        """From the request's arrival to the first token's send."""
        return self.sent_s[0] - self.arrived_s

    @property
    def gaps_s(self) -> tuple[float, ...]:
        """Between the sends of neighbouring tokens."""
        return tuple(b - a for a, b in pairwise(self.sent_s))


@dataclass(frozen=True, slots=True)
class Lateness:
    """How late the engine itself was with its tokens, in seconds; None when it sent none."""

    n: int
    p50_s: float | None
    p99_s: float | None
    max_s: float | None


def lateness_of(answers: Sequence[SentAnswer]) -> Lateness:
    """How late these answers' tokens went."""
    late_s = sorted(
        sent_s - due_s for each in answers for sent_s, due_s in zip(each.sent_s, each.due_s, strict=True)
    )
    if not late_s:
        return Lateness(0, None, None, None)
    return Lateness(len(late_s), percentile(late_s, 50), percentile(late_s, 99), late_s[-1])


@dataclass(frozen=True, slots=True)
class ScriptedEngine:
    """A running engine; `address` has no /v1."""

    address: str

    def sent(self) -> list[SentAnswer]:
        """The streamed answers that had a token, since it was last asked, by arrival; at most 20,000."""
        rows = json.loads(_get(f"{self.address}/sent"))
        answers = [
            SentAnswer(r["request_id"], r["arrived_s"], tuple(r["due_s"]), tuple(r["sent_s"])) for r in rows
        ]
        return sorted((each for each in answers if each.sent_s), key=lambda answer: answer.arrived_s)


@contextmanager
def scripted_engine(script: Path) -> Generator[ScriptedEngine]:
    """Serves the script on loopback until the end of the block; EndpointError when it does not start."""
    arguments = {"script": str(script), "model": MODEL, "port": _free_port()}
    command = [sys.executable, "-m", "decant_serve.engines.scripted_child", json.dumps(arguments)]
    process = subprocess.Popen(command, preexec_fn=end_with_parent())  # noqa: PLW1509 - no locks are held
    try:
        engine = ScriptedEngine(f"http://127.0.0.1:{arguments['port']}")
        _wait(engine, process)
        yield engine
    finally:
        process.terminate()
        process.wait()


def _wait(engine: ScriptedEngine, process: subprocess.Popen[bytes]) -> None:
    give_up_s = time.monotonic() + _START_LIMIT_S
    while time.monotonic() < give_up_s and process.poll() is None:
        try:
            _get(f"{engine.address}/health")
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.05)
    raise EndpointError(f"the scripted engine did not start at {engine.address}")


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as response:
        return response.read()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
