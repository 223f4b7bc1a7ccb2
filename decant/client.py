"""The async OpenAI-compatible client of labeling and evaluation: one pool, retries by rule, exact stamps.

A request is tried again after 408, 409, 429, 5xx, and after a failed connect or a reset before the first
content; never once content came. `Retry-After` is honoured. Clock readings are `time.perf_counter()`.
"""

import asyncio
import ipaddress
import json
import random
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Self, TypeVar, cast
from urllib.parse import quote

import httpx

from decant import __version__
from decant.api_error import ApiError, ErrorKind
from decant.connection_pools import ConnectionPools
from decant.errors import ConfigError
from decant.exchange import Attempt, Call, Completion, Route

__all__ = ["ApiError", "Backoff", "Completion", "ErrorKind", "OpenAIClient"]

T = TypeVar("T")
_Reader = Callable[[Attempt, httpx.Response], Awaitable[T]]

_TRIED_AGAIN: frozenset[ErrorKind] = frozenset(
    {"connect", "reset", "rate_limited", "server_error", "conflict"}
)
_CONNECT_LIMIT_S = 30.0
PATHS: Mapping[Route, str] = {"chat": "/chat/completions", "completions": "/completions"}


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits between tries: exponential with jitter, and an error at once for too long a `Retry-After`."""

    base_s: float = 0.5
    cap_s: float = 30.0
    longest_retry_after_s: float = 120.0

    def delay_s(self, tries: int, retry_after: float | None) -> float | None:
        """How long to wait after `tries` tries; None when the server asks for longer than we would wait."""
        if retry_after is None:
            return min(self.cap_s, self.base_s * 2.0 ** (tries - 1)) * random.uniform(0.5, 1.0)
        if retry_after > self.longest_retry_after_s:
            return None
        # Everybody was told the same time; do not come back all at once.
        return retry_after + random.uniform(0.0, self.base_s)


class OpenAIClient:
    """One pool of connections to one endpoint; an async context manager.

    `timeout_s` bounds one try from its start to the end of its answer.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 600.0,
        max_connections: int | None = None,
        max_retries: int = 5,
        backoff: Backoff | None = None,
    ) -> None:
        url = _checked(base_url)
        self._base_url = str(url).rstrip("/")
        self._timeout_s = timeout_s
        self._max_retries = max_retries
        self._backoff = backoff or Backoff()
        headers = {
            "user-agent": f"decant/{__version__}",
            # Compressed streams reach us in lumps, which would falsify the stamps.
            "accept-encoding": "identity",
            **({"authorization": f"Bearer {api_key}"} if api_key else {}),
        }
        build = partial(
            httpx.AsyncClient,
            headers=headers,
            timeout=httpx.Timeout(None, connect=min(timeout_s, _CONNECT_LIMIT_S)),
            # Certificates take long to load, and plain http has no use for them.
            verify=httpx.create_ssl_context() if url.scheme == "https" else False,
            trust_env=not is_loopback(url.host),
        )
        self._pools = ConnectionPools(lambda limits: build(limits=limits), most=max_connections)
        self._unpooled = build(limits=httpx.Limits(max_keepalive_connections=0))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._pools.aclose()
        await self._unpooled.aclose()

    async def chat(
        self,
        request: Mapping[str, Any],
        *,
        stream: bool = True,
        intended_s: float | None = None,
        request_id: str | None = None,
    ) -> Completion:
        """The answer to one chat request, stamped; `intended_s` is when the schedule said to send it.

        A stream is asked for its usage. Raises ApiError, and ConfigError for a request of several answers.
        """
        return await self._completed("chat", request, stream, intended_s, request_id)

    async def complete(
        self,
        request: Mapping[str, Any],
        *,
        stream: bool = True,
        intended_s: float | None = None,
        request_id: str | None = None,
    ) -> Completion:
        """The same for one request to /completions, which has a `prompt` where a chat has messages."""
        return await self._completed("completions", request, stream, intended_s, request_id)

    async def models(self) -> list[dict[str, Any]]:
        """What GET /models lists."""

        async def listed(attempt: Attempt, response: httpx.Response) -> list[dict[str, Any]]:
            models = (await attempt.json_object(response)).get("data")
            if not isinstance(models, list):
                raise attempt.error("bad_response", "no list of models under `data`")
            return cast(list[dict[str, Any]], models)

        return await self._retried(self._get("/models"), listed)

    async def model(self, model_id: str) -> dict[str, Any]:
        """What GET /models/{id} says; ApiError "not_found" where there is no such model or no such route."""
        return await self._retried(self._get(f"/models/{quote(model_id, safe='')}"), Attempt.json_object)

    def _get(self, path: str) -> Call:
        return Call(method="GET", url=self._base_url + path, request_id=uuid.uuid4().hex)

    async def _completed(
        self,
        route: Route,
        request: Mapping[str, Any],
        stream: bool,
        intended_s: float | None,
        request_id: str | None,
    ) -> Completion:
        call = completion_call(
            self._base_url + PATHS[route],
            request,
            route=route,
            stream=stream,
            intended_s=intended_s,
            request_id=request_id,
        )
        return await self._retried(call, partial(Attempt.completion, stream=stream))

    async def _retried(self, call: Call, read: _Reader[T]) -> T:
        tries = 0
        while True:
            tries += 1
            try:
                return await self._tried(Attempt(call, tries), read)
            except ApiError as error:
                if tries > self._max_retries or not (error.kind in _TRIED_AGAIN or error.status == 408):
                    raise
                delay_s = self._backoff.delay_s(tries, error.retry_after)
                if delay_s is None:
                    raise
            await asyncio.sleep(delay_s)

    async def _tried(self, attempt: Attempt, read: _Reader[T]) -> T:
        try:
            with self._pools.client() as pooled:
                async with asyncio.timeout(self._timeout_s):
                    response = await self._send(attempt, pooled)
                    try:
                        await attempt.check(response)
                        return await read(attempt, response)
                    finally:
                        await response.aclose()
        except TimeoutError as error:
            raise attempt.error("timeout", f"no whole answer within {self._timeout_s:g} s") from error
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise attempt.error("connect", str(error) or "the connection timed out") from error
        except httpx.TransportError as error:
            raise attempt.broken(error) from error

    async def _send(self, attempt: Attempt, pooled: httpx.AsyncClient) -> httpx.Response:
        call = attempt.call
        request = pooled.build_request(
            call.method,
            call.url,
            content=call.content,
            headers={"x-request-id": call.request_id, "content-type": "application/json"},
            extensions={"trace": attempt.trace},
        )
        try:
            return await pooled.send(request, stream=True)
        except (httpx.NetworkError, httpx.RemoteProtocolError):
            # llama-server closes its connections after a streamed answer: a reset on one that we reused says
            # nothing about this request, so it goes out again, once, on a connection of its own.
            if attempt.connected:
                raise
            return await self._unpooled.send(request, stream=True)


def completion_call(
    url: str,
    request: Mapping[str, Any],
    *,
    route: Route,
    stream: bool,
    intended_s: float | None,
    request_id: str | None,
) -> Call:
    """What every client of ours sends for a completion: the request as given, a stream asked for its usage.

    ConfigError for a request of several answers: a `Completion` is one.
    """
    if request.get("n") not in (None, 1):
        raise ConfigError(f"n={request['n']}: send one request per sample, each with its own seed")
    body: dict[str, Any] = {**request, "stream": stream}
    if stream:
        body["stream_options"] = {"include_usage": True, **(body.get("stream_options") or {})}
    return Call(
        method="POST",
        url=url,
        request_id=request_id or uuid.uuid4().hex,
        # ASCII escapes: text with lone surrogates must reach the server, not break the client.
        content=json.dumps(body, allow_nan=False).encode("ascii"),
        intended_s=intended_s,
        route=route,
    )


def _checked(base_url: str) -> httpx.URL:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise ConfigError(f"base_url {base_url!r}: {error}") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"base_url {base_url!r}: give an address such as http://127.0.0.1:8000/v1")
    return url


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, whose own ports no proxy from the environment can reach."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
