"""The scripted engine on a port of its own: the known delays, and its word on how well it kept them."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from decant.processes import end_with_parent
from peers.clients import PeerError

MODEL = "scripted"
_START_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Truth:
    """What the engine does: the first of `tokens` tokens after `ttft_s`, the others `gap_s` apart."""

    ttft_s: float
    gap_s: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Lateness:
    """How late the engine itself was with its events, in seconds; None when it sent none."""

    n: int
    p50_s: float | None
    p99_s: float | None


@dataclass(frozen=True, slots=True)
class ScriptedEngine:
    """A running engine."""

    base_url: str

    def lateness(self) -> Lateness:
        """Since it was last asked."""
        found = json.loads(_get(f"{self.base_url}/lateness"))
        return Lateness(found["n"], found["p50_s"], found["p99_s"])


@contextmanager
def scripted_engine(truth: Truth, folder: Path) -> Generator[ScriptedEngine]:
    """Serves the truth until the end of the block; PeerError when it does not start."""
    folder.mkdir(parents=True, exist_ok=True)
    chunks = [f"word{number} " for number in range(truth.tokens)]
    answer = {"chunks": chunks, "ttft_s": truth.ttft_s, "gaps_s": [truth.gap_s], "prompt_tokens": 8}
    script = folder / "script.json"
    script.write_text(json.dumps({"answers": [answer]}), encoding="utf-8")
    port = _free_port()
    arguments = {"script": str(script), "model": MODEL, "port": port}
    command = [sys.executable, "-m", "decant_serve.engines.scripted_child", json.dumps(arguments)]
    process = subprocess.Popen(command, preexec_fn=end_with_parent())  # noqa: PLW1509 - there are no threads yet
    try:
        engine = ScriptedEngine(f"http://127.0.0.1:{port}")
        _wait(engine, process)
        yield engine
    finally:
        process.terminate()
        process.wait()


def _wait(engine: ScriptedEngine, process: subprocess.Popen[bytes]) -> None:
    give_up_s = time.monotonic() + _START_LIMIT_S
    while time.monotonic() < give_up_s and process.poll() is None:
        try:
            _get(f"{engine.base_url}/health")
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise PeerError(f"the scripted engine did not start at {engine.base_url}")


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=10) as response:
        return response.read()


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
