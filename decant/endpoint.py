"""The endpoint a stage talks to: someone else's URL, or a model that `decant serve` runs meanwhile."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, cast

from pydantic import Field, model_validator

from decant.api_error import ApiError, ErrorKind
from decant.client import OpenAIClient
from decant.config import Config, OptionalInputPath
from decant.errors import DecantError, EndpointError
from decant.processes import end_with_parent

_START_LIMIT_S = 180.0
_STOP_LIMIT_S = 15.0
_POLL_S = 0.05
_DESCRIBE_LIMIT_S = 10.0
_UNREACHABLE: tuple[ErrorKind, ...] = ("connect", "reset", "timeout")


class EndpointConfig(Config):
    """Where requests go and what they cost. Set either `base_url` and `model`, or `serve`."""

    base_url: str | None = Field(default=None, description="OpenAI-compatible endpoint, with its /v1")
    model: str | None = Field(default=None, description="model id that the endpoint knows")
    api_key_env: str | None = Field(default=None, description="environment variable that holds the API key")
    serve: OptionalInputPath = Field(
        default=None, description="model folder or GGUF that decant serves for this stage"
    )
    engine: str = Field(default="auto", description="engine for `serve`")
    engine_python: Path | None = Field(default=None, description="interpreter that has the engine (vllm)")
    threads: int | None = Field(default=None, ge=1, description="engine threads for `serve`")
    parallel: int | None = Field(
        default=None, ge=1, description="requests that the served engine decodes at once"
    )
    context: int | None = Field(default=None, ge=64, description="tokens of context per request for `serve`")
    price_per_hour: float | None = Field(
        default=None, ge=0, description="$ per hour of the hardware that serves it"
    )
    usd_per_million_prompt_tokens: float | None = Field(
        default=None, ge=0, description="$ per million prompt tokens"
    )
    usd_per_million_completion_tokens: float | None = Field(
        default=None, ge=0, description="$ per million tokens out"
    )
    request_timeout_s: float = Field(default=600.0, gt=0, description="longest wait for one answer")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.serve is None) == (self.base_url is None):
            raise ValueError("set exactly one of base_url and serve")
        if self.base_url is not None and self.model is None:
            raise ValueError("base_url needs model, the id that the endpoint knows")
        return self


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A reachable endpoint. `description` is its own word on the model, empty where it gives none."""

    base_url: str
    model: str
    api_key: str | None = field(repr=False)
    description: dict[str, Any]
    process_id: int | None


@asynccontextmanager
async def open_endpoint(config: EndpointConfig, *, log_dir: Path) -> AsyncGenerator[Endpoint]:
    """Yields the endpoint, serving the model first where asked; what it started is gone afterwards.

    A served model's output goes to `serve.log` in `log_dir`. EndpointError when it cannot be reached.
    """
    if config.serve is None:
        assert config.base_url is not None
        assert config.model is not None
        api_key = _api_key(config)
        description = await _describe(config.base_url, config.model, api_key)
        yield Endpoint(config.base_url, config.model, api_key, description, None)
        return
    ready_file, log_file = _prepare(log_dir)
    with log_file.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *_serve_command(config, ready_file),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=end_with_parent(),
        )
    try:
        ready = await _wait_until_ready(process, ready_file, log_file)
        description = await _describe(ready["base_url"], ready["model"], None)
        yield Endpoint(ready["base_url"], ready["model"], None, description, process.pid)
    finally:
        await _stop(process)
        ready_file.unlink(missing_ok=True)


def _prepare(log_dir: Path) -> tuple[Path, Path]:
    log_dir.mkdir(parents=True, exist_ok=True)
    ready_file = log_dir / "serve.ready.json"
    ready_file.unlink(missing_ok=True)
    return ready_file, log_dir / "serve.log"


def _serve_command(config: EndpointConfig, ready_file: Path) -> list[str]:
    command = [sys.executable, "-m", "decant", "serve", str(config.serve), "--port", "0"]
    command += ["--ready-file", str(ready_file), "--engine", config.engine]
    options = {
        "threads": config.threads,
        "parallel": config.parallel,
        "context": config.context,
        "engine-python": config.engine_python,
    }
    for name, value in options.items():
        command += [f"--{name}", str(value)] if value is not None else []
    return command


def _api_key(config: EndpointConfig) -> str | None:
    if config.api_key_env is None:
        return None
    key = os.environ.get(config.api_key_env)
    if not key:
        raise EndpointError(f"the environment variable {config.api_key_env} is empty; put the API key there")
    return key


async def _wait_until_ready(
    process: asyncio.subprocess.Process, ready_file: Path, log_file: Path
) -> dict[str, Any]:
    give_up_at = time.monotonic() + _START_LIMIT_S
    while time.monotonic() < give_up_at:
        if ready := _read_ready(ready_file):
            return ready
        if process.returncode is not None:
            raise EndpointError(f"decant serve stopped at start-up: {_last_line(log_file)}")
        await asyncio.sleep(_POLL_S)
    raise EndpointError(f"decant serve was not ready after {_START_LIMIT_S:.0f} s; see {log_file}")


def _read_ready(ready_file: Path) -> dict[str, Any] | None:
    return json.loads(ready_file.read_text(encoding="utf-8")) if ready_file.exists() else None


def _last_line(log_file: Path) -> str:
    lines = log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    errors = [line for line in lines if line.startswith("decant: ")]
    return (errors or lines or [f"see {log_file}"])[-1].removeprefix("decant: ")


async def _describe(base_url: str, model: str, api_key: str | None) -> dict[str, Any]:
    """The `decant` object of the endpoint's model page; empty for an endpoint that is not ours.

    An endpoint that cannot be reached is tried again and then an error; many good ones have no such page.
    """
    try:
        async with OpenAIClient(base_url, api_key=api_key, timeout_s=_DESCRIBE_LIMIT_S) as client:
            body = await client.model(model)
    except ApiError as error:
        if error.kind in _UNREACHABLE:
            raise
        return {}
    own = body.get("decant")
    return cast(dict[str, Any], own) if isinstance(own, dict) else {}


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        await asyncio.wait_for(process.wait(), timeout=_STOP_LIMIT_S)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise DecantError(f"decant serve (pid {process.pid}) ignored SIGTERM and was killed") from None
