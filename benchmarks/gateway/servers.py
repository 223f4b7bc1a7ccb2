"""The sides of a comparison, each a process of its own on this machine."""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from gateway.client import Address

_START_LIMIT_S = 180.0


def cpu_seconds(process_id: int) -> float:
    """User and system time that a process has used, without its children's."""
    fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def scripted_engine(script: Path) -> Generator[Address]:
    """The scripted engine's own process, called directly."""
    port = free_port()
    arguments = json.dumps({"script": str(script), "model": "scripted", "port": port})
    command = [sys.executable, "-m", "decant_serve.engines.scripted_child", arguments]
    log = script.with_suffix(".engine.log")
    with _running(command, lambda: _is_up(port, "/health"), log) as process_id:
        yield Address("scripted", port=port, process_id=process_id)


@contextmanager
def gateway(model: Path, *options: str, folder: Path) -> Generator[Address]:
    """`decant serve` over an engine of its own."""
    ready, port = folder / "ready.json", free_port()
    command = [sys.executable, "-m", "decant", "serve", str(model), "--port", str(port)]
    command += ["--ready-file", str(ready), "--golden", "skip", *options]
    with _running(command, ready.exists, folder / "gateway.log") as process_id:
        yield Address(str(json.loads(ready.read_text())["model"]), port=port, process_id=process_id)


@contextmanager
def llamacpp_engine(model: Path, *, threads: int, parallel: int, folder: Path) -> Generator[Address]:
    """The llamacpp engine's own process, called directly over its Unix socket."""
    path = str(folder / f"direct-{parallel}.sock")
    settings = {
        "model": str(model),
        "alias": "direct",
        "socket": path,
        "threads": threads,
        "context": 2048 * parallel,
        "parallel": parallel,
    }
    command = [sys.executable, "-m", "decant_serve.engines.llamacpp_child", json.dumps(settings)]
    with _running(command, lambda: _is_up(path, "/health"), folder / "llamacpp.log"):
        yield Address("direct", socket=path)


@contextmanager
def llama_cpp_server(python: Path, model: Path, *, threads: int, folder: Path) -> Generator[Address]:
    """llama-cpp-python's server; as it comes, a request that arrives would cut off the one that streams."""
    port = free_port()
    command = [str(python), "-m", "llama_cpp.server", "--model", str(model), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--n_threads", str(threads), "--n_ctx", "2048"]
    command += ["--interrupt_requests", "False"]
    with _running(command, lambda: _is_up(port, "/v1/models"), folder / "llama_cpp_server.log"):
        yield Address(str(model), port=port)


@contextmanager
def litellm_proxy(python: Path, engine: Address, *, folder: Path) -> Generator[Address]:
    """LiteLLM's proxy over the scripted engine, with its own defaults."""
    port, config = free_port(), folder / "litellm.yaml"
    parameters = {
        "model": f"openai/{engine.model}",
        "api_base": f"http://127.0.0.1:{engine.port}/v1",
        "api_key": "none",
    }
    # JSON is YAML too.
    config.write_text(json.dumps({"model_list": [{"model_name": "scripted", "litellm_params": parameters}]}))
    command = [str(python.with_name("litellm")), "--config", str(config), "--port", str(port)]
    command += ["--host", "127.0.0.1"]
    # Its table of prices would be fetched from the network.
    key = f"sk-{secrets.token_hex(32)}"
    offline = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MASTER_KEY": key, "PYTHONPATH": ""}
    log = folder / "litellm.log"
    with _running(command, lambda: _is_up(port, "/health/liveliness"), log, offline) as process_id:
        yield Address("scripted", port=port, key=key, process_id=process_id)


def _is_up(where: int | str, path: str) -> bool:
    transport = httpx.HTTPTransport(uds=where) if isinstance(where, str) else httpx.HTTPTransport()
    base_url = "http://engine" if isinstance(where, str) else f"http://127.0.0.1:{where}"
    with httpx.Client(base_url=base_url, transport=transport, timeout=2.0) as client:
        try:
            return client.get(path).status_code == 200
        except httpx.HTTPError:
            return False


@contextmanager
def _running(
    command: Sequence[str], is_up: Callable[[], bool], log: Path, environment: dict[str, str] | None = None
) -> Generator[int]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=output, env={**os.environ, **(environment or {})}
        )
    try:
        give_up_at_s = time.monotonic() + _START_LIMIT_S
        while not is_up():
            if process.poll() is not None or time.monotonic() > give_up_at_s:
                raise SystemExit(f"{command[0]} did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.1)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
