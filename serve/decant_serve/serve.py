"""`decant serve MODEL`: models behind one OpenAI-compatible endpoint."""

import asyncio
import gc
import ipaddress
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from decant.errors import ConfigError, EndpointError
from decant.files import write_json
from decant_serve.access import Access, load_access
from decant_serve.deadlines import Drain
from decant_serve.gateway import Gateway, Limits, ServedModel
from decant_serve.http_server import HttpServer
from decant_serve.metrics import Metrics
from decant_serve.models import ModelConfig, ModelTable, Startup, find_models
from decant_serve.routes import gateway_app, routed_app
from decant_serve.timing_log import TimingLog
from decant_serve.tracing import Tracing, open_tracing

if TYPE_CHECKING:
    from decant_serve.batches import Batches

# A Unix socket's path is limited to 108 bytes.
_SOCKET_PATH_BYTES = 100


class ServeConfig(ModelConfig):
    """What to serve, with which engine, where, and to whom."""

    models: tuple[ModelTable, ...] = Field(
        default=(), description="several models, routed by name, each with the options of one"
    )
    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    ready_file: Path | None = Field(default=None, description="written as JSON when requests can come")
    api_keys: Path | None = Field(default=None, description="TOML file with the hashes of the keys let in")
    api_keys_env: str | None = Field(
        default=None, description="environment variable with the keys let in, separated by commas"
    )
    insecure: bool = Field(default=False, description="listen on a public address without API keys")
    body_limit_bytes: int = Field(default=16 * 2**20, ge=1, description="largest request body")
    batches: Path | None = Field(
        default=None, description="folder that keeps the files and batches of their APIs; none if not set"
    )
    file_limit_bytes: int = Field(default=200 * 2**20, ge=1, description="largest uploaded file")
    request_limit_s: float = Field(
        default=600.0, gt=0, description="longest time that one request may take in the engine"
    )
    start_limit_s: float = Field(
        default=300.0, gt=0, description="longest time that an engine may take to start"
    )
    drain_limit_s: float = Field(
        default=30.0, ge=0, description="how long SIGTERM waits for requests in flight"
    )
    ready_gap_s: float = Field(
        default=0.0, ge=0, description="how long SIGTERM keeps listening while /ready says 503"
    )
    check_only: bool = Field(default=False, description="print the golden report as JSON and stop")
    timing_log: Path | None = Field(default=None, description="JSONL file for every request's timing")
    otlp: str | None = Field(
        default=None, description="OTLP/HTTP collector for OpenTelemetry spans, as http://HOST:4318"
    )

    @model_validator(mode="after")
    def _one_source(self) -> "ServeConfig":
        if not self.models:
            self.check_source()
            return self
        given = [name for name, f in ModelConfig.model_fields.items() if dict(self)[name] != f.default]
        if given:
            raise ValueError(f"{', '.join(given)}: with several models, say it in each [[models]] table")
        return self

    def tables(self) -> tuple[ModelConfig, ...]:
        """Every model's options."""
        return self.models or (self,)


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
    access = load_access(config.api_keys, variable=config.api_keys_env)
    if access.is_open and not config.insecure:
        _require_loopback(config.host)
    tracing = open_tracing(None if config.check_only else config.otlp)
    listener = None if config.check_only else _listen(config.host, config.port)
    startups = await find_models(config.tables(), folder=folder, start_limit_s=config.start_limit_s)
    async with AsyncExitStack() as engines:
        served = [await _start(startup, engines, check_only=config.check_only) for startup in startups]
        if listener is not None:
            gateway = _gateway(config, served, access, tracing)
            async with _batches(gateway):
                await _serve(config, gateway, listener)
            stop.ignore()


async def _start(startup: Startup, engines: AsyncExitStack, *, check_only: bool) -> ServedModel:
    if startup.shards is not None:
        engines.push_async_callback(startup.shards.stop)
    engines.push_async_callback(startup.supervisor.stop)
    report = await startup.check()
    if check_only:
        sys.stdout.write(report.model_dump_json() + "\n")
    report.raise_if_broken()
    return startup.served(report)


async def _serve(config: ServeConfig, gateway: Gateway, listener: socket.socket) -> None:
    server = HttpServer(
        gateway_app(gateway),
        drain=gateway.drain,
        drain_limit_s=config.drain_limit_s,
        ready_gap_s=config.ready_gap_s,
    )
    host, port = listener.getsockname()[:2]
    with server.capture_signals():
        # What the start left lives as long as the process: a collection that walks all of it again and again
        # would hold up every stream for tens of milliseconds.
        gc.collect()
        gc.freeze()
        _announce(config, gateway, base_url=f"http://{_reachable(host)}:{port}/v1")
        try:
            await server.serve(sockets=[listener])
        finally:
            gateway.timings.close()
            await gateway.tracing.stop()
            for model in gateway.models.values():
                if model.lookup is not None:
                    model.lookup.close()
            if config.ready_file:
                config.ready_file.unlink(missing_ok=True)


def _announce(config: ServeConfig, gateway: Gateway, *, base_url: str) -> None:
    for name, model in gateway.models.items():
        checked = model.page["decant"]["golden"]["checked"]
        golden = f"{checked} golden prompts reproduced" if checked else "no golden prompts checked"
        sys.stdout.write(f"serving {name} on {base_url} ({model.engine_name} engine, {golden})\n")
    sys.stdout.flush()
    if config.ready_file:
        names = list(gateway.models)
        ready = {"base_url": base_url, "model": names[0], "models": names, "pid": os.getpid()}
        write_json(config.ready_file, ready)


def _gateway(config: ServeConfig, served: Sequence[ServedModel], access: Access, tracing: Tracing) -> Gateway:
    metrics = Metrics()
    for model in served:
        if model.shards is not None:
            model.shards.start(partial(metrics.observe_step, model.name, model.engine_name))
    return Gateway(
        models={model.name: model for model in served},
        access=access,
        drain=Drain(limit_s=config.ready_gap_s + config.drain_limit_s),
        timings=TimingLog(config.timing_log),
        metrics=metrics,
        limits=Limits(config.request_limit_s, config.body_limit_bytes, config.file_limit_bytes),
        tracing=tracing,
        batches=_kept_batches(config),
    )


def _kept_batches(config: ServeConfig) -> "Batches | None":
    if config.batches is None:
        return None
    from decant_serve.batches import Batches

    return Batches(config.batches, concurrency=sum(table.parallel for table in config.tables()))


def _batches(gateway: Gateway) -> AbstractAsyncContextManager[None]:
    """Runs the batches that are left and those to come."""
    if gateway.batches is None:
        return nullcontext()
    return gateway.batches.running(routed_app(gateway), list(gateway.models))


def _require_loopback(host: str) -> None:
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise ConfigError(
            f"host {host} is open to others and there are no API keys; give --api-keys, or say --insecure"
        )


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
        if len(os.fsencode(folder)) > _SOCKET_PATH_BYTES - len("/engine-99.sock"):
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
    """SIGTERM and SIGINT until the server takes them over: they cancel the start-up."""

    def __init__(self) -> None:
        self.signal_number = 0
        self._starting: asyncio.Task[Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def listen(self) -> None:
        """Takes the signals over for the running task."""
        self._loop, self._starting = asyncio.get_running_loop(), asyncio.current_task()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)

    def ignore(self) -> None:
        """From now on signals change nothing: all is being ended."""
        self._starting = None

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        self.signal_number = number
        if self._loop is not None and self._starting is not None:
            self._loop.call_soon_threadsafe(self._starting.cancel)
