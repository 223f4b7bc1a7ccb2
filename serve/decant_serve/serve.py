"""`decant serve MODEL`: one model behind an OpenAI-compatible endpoint."""

import asyncio
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar, Literal

import uvicorn
from pydantic import Field, model_validator

from decant.config import Config, OptionalInputPath
from decant.errors import ConfigError, EndpointError, EngineError
from decant.files import write_json
from decant.golden import GoldenReport
from decant_serve.admission import Admission
from decant_serve.engines.protocol import Engine, EngineSettings, build_engine
from decant_serve.gateway import Gateway
from decant_serve.golden_check import check_golden
from decant_serve.supervisor import Supervisor
from decant_serve.target import Target, find_target
from decant_serve.timing_log import TimingLog

_log = logging.getLogger(__name__)
_engine_log = logging.getLogger("decant_serve.engine")

_ENGINE_BY_KIND: Mapping[str, str] = {
    "hf": "transformers",
    "adapter": "transformers",
    "gguf": "llamacpp",
    "script": "scripted",
    "remote": "openai",
}
# A Unix socket's path is limited to 108 bytes.
_SOCKET_PATH_BYTES = 100
_KEEP_ALIVE_S = 75


class ServeConfig(Config):
    """What to serve, with which engine, where."""

    positional: ClassVar[tuple[str, ...]] = ("model",)

    model: OptionalInputPath = Field(
        default=None, description="model folder, adapter folder, .gguf file or script"
    )
    engine: Literal["auto", "llamacpp", "transformers", "openai", "scripted"] = Field(
        default="auto", description="what runs the model; auto goes by its kind"
    )
    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    ready_file: Path | None = Field(default=None, description="written as JSON when requests can come")
    threads: int | None = Field(
        default=None, ge=1, description="engine threads; every core but one if not set"
    )
    context: int = Field(default=2048, ge=64, description="tokens of context per request")
    parallel: int = Field(default=8, ge=1, description="requests that the engine decodes at once")
    queue_limit: int = Field(default=256, ge=0, description="requests that may wait before others get a 429")
    request_limit_s: float = Field(
        default=600.0, gt=0, description="longest time that one request may take in the engine"
    )
    start_limit_s: float = Field(
        default=300.0, gt=0, description="longest time that the engine may take to start"
    )
    drain_limit_s: float = Field(
        default=30.0, gt=0, description="how long SIGTERM waits for requests in flight"
    )
    golden: Literal["check", "skip"] = Field(
        default="check", description="re-run the artifact's golden prompts first"
    )
    check_only: bool = Field(default=False, description="print the golden report as JSON and stop")
    timing_log: Path | None = Field(default=None, description="JSONL file for every request's timing")
    base_url: str | None = Field(default=None, description="remote endpoint, with its /v1 (openai engine)")
    api_key_env: str | None = Field(default=None, description="environment variable with the remote API key")
    model_name: str | None = Field(
        default=None, description="model id to serve under; on the openai engine the remote one"
    )

    @model_validator(mode="after")
    def _one_source(self) -> "ServeConfig":
        if (self.model is None) == (self.base_url is None):
            raise ValueError("give either MODEL or base_url, the endpoint to pass requests on to")
        if self.base_url is not None and self.model_name is None:
            raise ValueError("base_url needs model_name, the id that the endpoint knows")
        if self.base_url is not None and self.engine not in ("auto", "openai"):
            raise ValueError(f"base_url is for the openai engine, not for {self.engine}")
        if self.base_url is None and self.engine == "openai":
            raise ValueError("the openai engine needs base_url, the endpoint to pass requests on to")
        return self


CONFIG = ServeConfig


def run(config: ServeConfig) -> None:
    """Serves until SIGTERM or Ctrl-C, then lets answers in flight finish; DecantError if it cannot start."""
    import uvloop

    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    for chatty in ("httpx", "uvicorn.error"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    stop = _Stop()
    with _runtime_folder() as folder:
        try:
            uvloop.run(_run(config, folder, stop))
        except asyncio.CancelledError:
            raise SystemExit(128 + stop.signal_number) from None


async def _run(config: ServeConfig, folder: Path, stop: "_Stop") -> None:
    stop.listen()
    listener = None if config.check_only else _listen(config.host, config.port)
    target = await asyncio.to_thread(_find_target, config)
    engine = build_engine(_engine_name(config, target), _settings(config, target, folder))
    supervisor = Supervisor(engine, start_limit_s=config.start_limit_s, echo=_engine_log.info)
    await supervisor.start()
    try:
        manifest = None if config.golden == "skip" else target.manifest
        try:
            report = await check_golden(engine, supervisor.client, manifest)
        except EngineError as error:
            raise await supervisor.explain(error) from None
        if config.check_only:
            sys.stdout.write(report.model_dump_json() + "\n")
        report.raise_if_broken()
        if listener is not None:
            page = _model_page(config, target, engine, report)
            await _serve(config, _gateway(config, page, engine, supervisor), listener, stop)
    finally:
        await supervisor.stop()


async def _serve(config: ServeConfig, gateway: Gateway, listener: socket.socket, stop: "_Stop") -> None:
    server = uvicorn.Server(
        uvicorn.Config(
            gateway.app(),
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=max(1, round(config.drain_limit_s)),
        )
    )
    stop.server = server
    host, port = listener.getsockname()[:2]
    _announce(config, gateway, base_url=f"http://{_reachable(host)}:{port}/v1")
    try:
        await server.serve(sockets=[listener])
    finally:
        gateway.timings.close()
        if config.ready_file:
            config.ready_file.unlink(missing_ok=True)


def _announce(config: ServeConfig, gateway: Gateway, *, base_url: str) -> None:
    engine = gateway.page["decant"]["engine"]
    checked = gateway.page["decant"]["golden"]["checked"]
    golden = f"{checked} golden prompts reproduced" if checked else "no golden prompts checked"
    sys.stdout.write(f"serving {gateway.model} on {base_url} ({engine} engine, {golden})\n")
    sys.stdout.flush()
    if config.ready_file:
        ready = {"base_url": base_url, "model": gateway.model, "pid": os.getpid()}
        write_json(config.ready_file, ready)


def _gateway(config: ServeConfig, page: Mapping[str, Any], engine: Engine, supervisor: Supervisor) -> Gateway:
    return Gateway(
        model=page["id"],
        page=page,
        engine=engine,
        supervisor=supervisor,
        admission=Admission(slots=config.parallel, queue_limit=config.queue_limit),
        timings=TimingLog(config.timing_log),
        request_limit_s=config.request_limit_s,
    )


def _find_target(config: ServeConfig) -> Target:
    if config.model is not None:
        return find_target(config.model, name=config.model_name)
    assert config.model_name is not None
    return Target(config.model_name, "remote", None)


def _engine_name(config: ServeConfig, target: Target) -> str:
    fitting = _ENGINE_BY_KIND[target.kind]
    if config.engine not in ("auto", fitting):
        raise ConfigError(f"the {config.engine} engine cannot serve {config.model}, a {target.kind} model")
    return fitting


def _settings(config: ServeConfig, target: Target, folder: Path) -> EngineSettings:
    key = os.environ.get(config.api_key_env, "") if config.api_key_env else None
    if key == "":
        raise ConfigError(f"the environment variable {config.api_key_env} is empty; put the API key there")
    return EngineSettings(
        target=target,
        socket=folder / "engine.sock",
        threads=_threads(config),
        context=config.context,
        parallel=config.parallel,
        remote_url=config.base_url,
        api_key=key,
    )


def _threads(config: ServeConfig) -> int:
    """One core is left to the gateway: threads that spin at a barrier for one without a core cost tenfold."""
    return config.threads or max(1, len(os.sched_getaffinity(0)) - 1)


def _model_page(config: ServeConfig, target: Target, engine: Engine, report: GoldenReport) -> dict[str, Any]:
    description = engine.describe()
    own = {
        "engine": description.name,
        "kind": target.kind,
        "method": target.method,
        "manifest_sha256": target.manifest_sha256,
        "size_bytes": target.size_bytes,
        "golden": report.model_dump(mode="json"),
        "threads": _threads(config),
        "parallel": config.parallel,
        "context": config.context,
        **description.details,
    }
    return {
        "id": target.name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "decant",
        "decant": own,
    }


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket: a busy port shows before the model loads, early clients wait in its backlog."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        reason = error.strerror or str(error)
        raise EndpointError(
            f"cannot listen on {host}:{port} ({reason}); choose another --port, or 0"
        ) from None


def _reachable(host: str) -> str:
    """The address to give to a client on this machine."""
    if host in ("0.0.0.0", "::"):
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


@contextmanager
def _runtime_folder() -> Generator[Path]:
    """A folder that only we can enter, for the engine's socket; those of killed servers are cleared away."""
    for left in Path(tempfile.gettempdir()).glob("decant-serve-*-*"):
        if not _is_running(int(left.name.split("-")[2])):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"decant-serve-{os.getpid()}-"))
    try:
        if len(os.fsencode(folder)) > _SOCKET_PATH_BYTES - len("/engine.sock"):
            raise ConfigError(f"{folder}: too long for a socket's path; set TMPDIR to a shorter one")
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_running(process_id: int) -> bool:
    """Whether there is such a process, ours or not."""
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class _Stop:
    """SIGTERM and SIGINT: before the server runs they cancel the start-up, afterwards they drain it."""

    def __init__(self) -> None:
        self.signal_number = 0
        self.server: uvicorn.Server | None = None
        self._starting: asyncio.Task[Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def listen(self) -> None:
        """Takes the signals over for the running task."""
        self._loop, self._starting = asyncio.get_running_loop(), asyncio.current_task()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        # uvicorn takes the signals over while it runs and raises them again at its end, when all is done.
        self.signal_number = number
        if self.server is not None:
            self.server.should_exit = True
        elif self._loop is not None and self._starting is not None:
            self._loop.call_soon_threadsafe(self._starting.cancel)
