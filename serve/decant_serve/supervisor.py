"""Keeps one engine alive: starts its process, waits until it answers, restarts it when it dies, ends it."""

import asyncio
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

import httpx

from decant.errors import EngineError
from decant.processes import end_with_parent
from decant_serve.calls import Features
from decant_serve.engine_client import EngineClient
from decant_serve.engines.protocol import GATEWAY_KEEPS_IDLE_S, Engine, Launch

_log = logging.getLogger(__name__)

_POLL_S = 0.02
_STOP_LIMIT_S = 5.0
_READ_LIMIT_S = 1.0
_BACKOFF_S = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_STABLE_AFTER_S = 60.0
_KEPT_LINES = 40
_SHOWN_LINES = 6

NO_FEATURES = Features(chat=frozenset(), completions=frozenset())

State = Literal["stopped", "starting", "ready", "restarting"]


class Supervisor:
    """Owns an engine's process and the connections to it. One at a time; `start` first, `stop` last.

    `echo` gets every line that the engine prints. What clients ask goes through `requests`, what the gateway
    itself wants to know at start-up through `client`.
    """

    def __init__(self, engine: Engine, *, start_limit_s: float, echo: Callable[[str], None]) -> None:
        self._engine = engine
        self._description = engine.describe()
        self._start_limit_s = start_limit_s
        self._echo = echo
        self._process: asyncio.subprocess.Process | None = None
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._reader: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self.client = _connect(engine)
        self.requests = EngineClient(self._description.upstream)
        self.state: State = "stopped"
        self.features = NO_FEATURES
        self.restarts = 0

    async def start(self) -> None:
        """Returns once the engine answers; EngineError with its last lines when it dies or takes too long."""
        self.state = "starting"
        try:
            await self._start_once()
        except BaseException:
            await self.stop()
            raise
        self.state = "ready"
        if self._process is not None:
            self._watcher = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        """Ends the process, by force after a grace, and closes the connections."""
        self.state = "stopped"
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
            self._watcher = None
        await self._end_process()
        self.requests.close()
        await self.client.aclose()

    async def explain(self, error: EngineError) -> EngineError:
        """The same error with the engine's end in it, where that is what lies behind it."""
        if self._process is None:
            return error
        try:
            await asyncio.wait_for(asyncio.shield(self._process.wait()), _READ_LIMIT_S)
        except TimeoutError:
            return error
        return EngineError(await self._obituary())

    @property
    def last_words(self) -> str:
        """The last lines that the engine printed, on one line."""
        return " | ".join(list(self._lines)[-_SHOWN_LINES:])

    async def _start_once(self) -> None:
        launch = self._engine.launch()
        if launch is not None:
            await self._spawn(launch)
        give_up_at = time.monotonic() + self._start_limit_s
        while (features := await self._engine.probe(self.client)) is None:
            if self._process is not None and self._process.returncode is not None:
                raise EngineError(await self._obituary())
            if time.monotonic() > give_up_at:
                raise EngineError(self._too_late())
            await asyncio.sleep(_POLL_S)
        self.features = features

    async def _spawn(self, launch: Launch) -> None:
        socket = self._description.upstream.socket
        if socket is not None:
            socket.unlink(missing_ok=True)
        self._lines.clear()
        self._process = await asyncio.create_subprocess_exec(
            *launch.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, **launch.environment},
            # A terminal's Ctrl-C goes to the gateway alone, which lets requests in flight finish first.
            start_new_session=True,
            preexec_fn=end_with_parent(signal.SIGKILL),
        )
        self._reader = asyncio.create_task(self._read_lines(self._process))
        _log.info("engine=%s event=started pid=%d", self._description.name, self._process.pid)

    async def _read_lines(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        buffered = b""
        # Not readline(): a line longer than its limit is an error there.
        while chunk := await process.stdout.read(65536):
            *lines, buffered = (buffered + chunk).split(b"\n")
            for line in lines:
                self._take_line(line)
            buffered = buffered[-65536:]
        self._take_line(buffered)

    def _take_line(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").strip()
        if text:
            self._lines.append(text)
            self._echo(text)

    async def _watch(self) -> None:
        """Restarts the engine whenever it dies, with growing waits that a stable run resets."""
        failures = 0
        while True:
            assert self._process is not None
            since_s = time.monotonic()
            await self._process.wait()
            self.state = "restarting"
            failures = 0 if time.monotonic() - since_s > _STABLE_AFTER_S else failures
            _end_group(self._process.pid)
            _log.error("engine=%s event=died detail=%r", self._description.name, await self._obituary())
            failures = await self._restart(failures)
            self.restarts += 1
            self.state = "ready"
            _log.warning("engine=%s event=restarted count=%d", self._description.name, self.restarts)

    async def _restart(self, failures: int) -> int:
        while True:
            await asyncio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
            failures += 1
            try:
                await self._start_once()
            except EngineError as error:
                _log.error("engine=%s event=restart-failed detail=%r", self._description.name, str(error))
                await self._end_process()
            else:
                return failures

    async def _end_process(self) -> None:
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), _STOP_LIMIT_S)
            except TimeoutError:
                _log.warning("engine=%s event=killed pid=%d", self._description.name, process.pid)
                process.kill()
                await process.wait()
        _end_group(process.pid)
        await self._finish_reading()

    async def _finish_reading(self) -> None:
        """What the process still had to say; bounded, as a process that it started may hold the pipe open."""
        if self._reader is not None:
            await asyncio.wait((self._reader,), timeout=_READ_LIMIT_S)
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)

    async def _obituary(self) -> str:
        assert self._process is not None
        await self._finish_reading()
        code = self._process.returncode or 0
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return (
            f"the {self._description.name} engine ended {how}; its last lines: {self.last_words or '(none)'}"
        )

    def _too_late(self) -> str:
        where = self._description.upstream
        name = self._description.name
        if where.socket is None:
            return f"the {name} engine: {where.base_url} did not answer within {self._start_limit_s:g} s"
        limit = f"was not ready after {self._start_limit_s:g} s"
        return f"the {name} engine {limit}; its last lines: {self.last_words or '(none)'}"


def _end_group(leader: int) -> None:
    """Ends what an engine's process had started itself, such as the ranks of a model, and left behind."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, signal.SIGKILL)


def _connect(engine: Engine) -> httpx.AsyncClient:
    upstream = engine.describe().upstream
    limits = httpx.Limits(
        max_connections=None,
        max_keepalive_connections=None if upstream.keeps_connections else 0,
        keepalive_expiry=GATEWAY_KEEPS_IDLE_S,
    )
    transport = httpx.AsyncHTTPTransport(
        uds=str(upstream.socket) if upstream.socket else None, limits=limits, trust_env=False
    )
    return httpx.AsyncClient(
        base_url=upstream.base_url,
        headers={"Accept-Encoding": "identity", **upstream.headers},
        transport=transport,
        timeout=None,
    )
