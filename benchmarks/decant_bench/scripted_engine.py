"""The scripted engine on a port of its own: known delays, and its word on how well it kept them."""

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

from decant.errors import EndpointError
from decant.processes import end_with_parent

MODEL = "scripted"
_START_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class Lateness:
    """How late the engine itself was with its events, in seconds; None when it sent none."""

    n: int
    p50_s: float | None
    p99_s: float | None
    max_s: float | None


@dataclass(frozen=True, slots=True)
class ScriptedEngine:
    """A running engine; `address` has no /v1."""

    address: str

    def lateness(self) -> Lateness:
        """Since it was last asked."""
        found = json.loads(_get(f"{self.address}/lateness"))
        return Lateness(found["n"], found["p50_s"], found["p99_s"], found["max_s"])


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
