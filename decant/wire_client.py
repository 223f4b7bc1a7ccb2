"""The lean client, of load and of labeling: as little as possible between the socket and the stamp.

It does what `decant.client.OpenAIClient` does without retries, with less work per event and per connection:
the kernel stamps what arrives, and an answer is read once it is whole. It speaks plain HTTP/1.1; what needs
TLS or a proxy goes through OpenAIClient, which stamps at the read.
"""

import asyncio
import socket
import urllib.request
from collections.abc import Mapping
from typing import Any, Literal, Self
from urllib.parse import SplitResult, urlsplit

from decant import __version__
from decant.arrival import Received, stamp_arrivals
from decant.client import PATHS, Completion, OpenAIClient, completion_call
from decant.errors import ConfigError
from decant.exchange import Attempt, Call, Route
from decant.plain_answer import plain_completion
from decant.wire_connection import ConnectionBroken, WireConnection

Stamps = Literal["kernel", "read"]
"""Who says when an event came: the kernel at its arrival, or the client when it read it."""

_Address = tuple[socket.AddressFamily, Any]

_CONNECT_LIMIT_S = 30.0


class WireClient:
    """Requests to one endpoint over as many connections as are in flight; an async context manager.

    ConfigError for a key that no header can carry.

    `timeout_s` bounds a request from its send to the end of its answer. Nothing is retried, but for a reused
    connection that the server had closed meanwhile: the request goes out again, on a new one.
    """

    def __init__(self, base_url: str, *, api_key: str | None, timeout_s: float) -> None:
        self._url = urlsplit(base_url.rstrip("/"))
        self._urls = {route: self._url.geturl() + path for route, path in PATHS.items()}
        self._timeout_s = timeout_s
        self._idle: list[WireConnection] = []
        self._addresses: list[_Address] = []
        if api_key and not (api_key.isascii() and api_key.isprintable()):
            raise ConfigError("the API key holds characters that a header cannot carry (a line end?)")
        self._head = _head(self._url, api_key)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        while self._idle:
            self._idle.pop().close()

    async def chat(
        self,
        request: Mapping[str, Any],
        *,
        stream: bool = True,
        intended_s: float | None = None,
        request_id: str | None = None,
    ) -> Completion:
        """The answer to one chat request; ApiError when there is none. A stream is asked for its usage.

        ConfigError for a request of several answers.
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
        """The same for one request to /completions."""
        return await self._completed("completions", request, stream, intended_s, request_id)

    async def _completed(
        self,
        route: Route,
        request: Mapping[str, Any],
        stream: bool,
        intended_s: float | None,
        request_id: str | None,
    ) -> Completion:
        call = completion_call(
            self._urls[route],
            request,
            route=route,
            stream=stream,
            intended_s=intended_s,
            request_id=request_id,
        )
        attempt = Attempt(call, 1)
        received = await self._received(attempt, self._bytes(call))
        plain = plain_completion(call, received, sent_s=attempt.sent_s) if stream else None
        return attempt.replayed(received, stream=stream) if plain is None else plain

    async def _received(self, attempt: Attempt, request: bytes) -> Received:
        connection: WireConnection | None = None
        try:
            async with asyncio.timeout(self._timeout_s):
                connection = await self._connection(attempt)
                try:
                    return await connection.exchange(request, on_sent=attempt.sent)
                except ConnectionBroken as error:
                    if error.began or not connection.was_reused:
                        raise
                    connection = await self._connect(attempt)
                    return await connection.exchange(request, on_sent=attempt.sent)
        except TimeoutError as error:
            so_far = None if connection is None else connection.so_far()
            if so_far is not None:
                attempt.progress(so_far)
            raise attempt.error("timeout", f"no whole answer within {self._timeout_s:g} s") from error
        except (ConnectionBroken, OSError) as error:
            raise attempt.broken(error) from error
        finally:
            if connection is not None and connection.reusable:
                self._idle.append(connection)

    async def _connection(self, attempt: Attempt) -> WireConnection:
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
        return await self._connect(attempt)

    async def _connect(self, attempt: Attempt) -> WireConnection:
        try:
            async with asyncio.timeout(_CONNECT_LIMIT_S):
                return WireConnection(await self._connected(), self._forget)
        except OSError as error:  # TimeoutError is one
            words = str(error) or "the connection timed out"
            raise attempt.error("connect", words) from error

    async def _connected(self) -> socket.socket:
        """A socket to the first of the host's addresses that takes it; later ones go there too."""
        addresses = await self._resolved()
        for place, address in enumerate(addresses):
            try:
                sock = await _connected_to(*address)
            except OSError:
                if place == len(addresses) - 1:
                    raise
            else:
                self._addresses = [address]
                return sock
        raise AssertionError("a host that resolves has an address")

    async def _resolved(self) -> list[_Address]:
        if not self._addresses:
            host, port = self._url.hostname or "", self._url.port or 80
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
            # IPv4 first: a server that listens on localhost often does so there alone.
            found.sort(key=lambda entry: entry[0] != socket.AF_INET)
            self._addresses = [(family, address) for family, _, _, _, address in found]
        return self._addresses

    def _forget(self, connection: WireConnection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)

    def _bytes(self, call: Call) -> bytes:
        content = call.content or b""
        own = f"x-request-id: {call.request_id}\r\ncontent-length: {len(content)}\r\n\r\n"
        return self._head[call.route] + own.encode("latin-1") + content


async def _connected_to(family: socket.AddressFamily, address: Any) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stamp_arrivals(sock)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock


def open_load_client(base_url: str, *, api_key: str | None, timeout_s: float) -> WireClient | OpenAIClient:
    """The client for an address; `stamps_of` says who stamps its events."""
    if stamps_of(base_url) == "kernel":
        return WireClient(base_url, api_key=api_key, timeout_s=timeout_s)
    return OpenAIClient(base_url, api_key=api_key, timeout_s=timeout_s, max_retries=0)


def stamps_of(base_url: str) -> Stamps:
    """Whether the kernel can stamp what comes from this address: plain HTTP on Linux and no proxy."""
    url = urlsplit(base_url)
    if url.scheme != "http" or "@" in url.netloc or not _kernel_stamps():
        return "read"
    host = url.hostname or ""
    proxied = "http" in urllib.request.getproxies() and not urllib.request.proxy_bypass(host)
    return "read" if proxied and host not in ("localhost", "127.0.0.1", "::1") else "kernel"


def _kernel_stamps() -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        return stamp_arrivals(sock)


def _head(url: SplitResult, api_key: str | None) -> dict[Route, bytes]:
    shared = (
        f"host: {url.netloc}\r\nuser-agent: decant/{__version__}\r\naccept: */*\r\n"
        "accept-encoding: identity\r\ncontent-type: application/json\r\n"
    )
    shared += f"authorization: Bearer {api_key}\r\n" if api_key else ""
    return {
        route: f"POST {url.path}{path} HTTP/1.1\r\n{shared}".encode("latin-1")
        for route, path in PATHS.items()
    }
