"""The gateway's way to an engine: HTTP/1.1 over its Unix socket, TCP or TLS, on connections that are kept.

It does what a request needs on its way through and no more; what is asked at start-up goes through httpx.
"""

import asyncio
import base64
import time
import zlib
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, Protocol

import httpx

from decant import __version__
from decant_serve.engine_connection import EngineConnection, EngineLost, Piece
from decant_serve.engines.protocol import GATEWAY_KEEPS_IDLE_S, Upstream

_CONNECT_LIMIT_S = 10.0
_WHOLE_LIMIT_BYTES = 256 * 2**20
# zlib's way to say: a gzip or zlib header, whichever is there.
_ANY_ZLIB = 47


class EngineAnswer:
    """One answer of an engine, whose head is there; `close` must follow."""

    def __init__(self, client: "EngineClient", connection: EngineConnection) -> None:
        self.status = connection.status
        self.headers: Mapping[str, str] = connection.headers
        self._client = client
        self._connection = connection
        self._unzip = _decompressor(self.headers.get("content-encoding"))

    @property
    def is_complete(self) -> bool:
        """Whether nothing more comes than what `pieces` has to give."""
        return self._connection.is_complete

    async def pieces(self) -> list[Piece]:
        """The reads since the last call, waiting for one; empty at the end. EngineLost when it breaks off."""
        pieces = await self._connection.pieces()
        if self._unzip is None:
            return pieces
        try:
            # An empty list would be the end, so an empty piece stays.
            return [(at_s, self._unzip.decompress(part)) for at_s, part in pieces]
        except zlib.error as error:
            raise EngineLost(f"its compressed answer is broken: {error}", began=True) from None

    async def parts(self) -> AsyncGenerator[bytes]:
        """The body as it comes."""
        while pieces := await self.pieces():
            for _, part in pieces:
                yield part

    async def whole(self, on_read: Callable[[float], None] | None = None) -> bytes:
        """The rest of the body; `on_read` is told when each part of it came."""
        body = bytearray()
        while pieces := await self.pieces():
            for at_s, part in pieces:
                body += part
                if on_read is not None:
                    on_read(at_s)
            if len(body) > _WHOLE_LIMIT_BYTES:
                raise EngineLost(f"more than {_WHOLE_LIMIT_BYTES} bytes in one answer", began=True)
        return bytes(body)

    def close(self) -> None:
        """Gives the connection back; one whose answer was not read to its end is closed at once."""
        self._client.take_back(self._connection)


class EngineClient:
    """Requests to one engine over as many connections as are in flight; idle ones are kept for a while."""

    def __init__(self, upstream: Upstream) -> None:
        self._url = httpx.URL(upstream.base_url)
        self._socket = upstream.socket
        self._keeps = upstream.keeps_connections
        self._prefix = self._url.raw_path.rstrip(b"/")
        self._head = _head(self._url, upstream.headers)
        # Certificates take long to load, and an engine of this machine has no use for them.
        is_tls = self._url.scheme == "https" and self._socket is None
        self._tls = httpx.create_ssl_context(trust_env=False) if is_tls else None
        self._idle: list[EngineConnection] = []

    async def ask(self, path: str, content: bytes, headers: Mapping[str, str]) -> EngineAnswer:
        """Posts JSON and returns with the head of the answer; EngineLost when there is none.

        A kept connection that ends before a byte of the answer says nothing about this request, for engines
        close them when they like: the request goes out again, once, on a new one.
        """
        request = self._request(path, content, headers)
        connection = self._kept()
        if connection is not None:
            try:
                return await self._asked(connection, request)
            except EngineLost as error:
                if error.began:
                    raise
        return await self._asked(await self._connected(), request)

    def take_back(self, connection: EngineConnection) -> None:
        """Ends an exchange: the connection is kept where another may follow."""
        if not connection.rest():
            return
        if not self._keeps:
            connection.abort()
            return
        connection.idle_since_s = time.monotonic()
        # The latest is used first, so those that are no longer needed gather at the front.
        if self._idle and connection.idle_since_s - self._idle[0].idle_since_s > GATEWAY_KEEPS_IDLE_S:
            self._idle.pop(0).abort()
        self._idle.append(connection)

    def close(self) -> None:
        """Closes what is kept."""
        while self._idle:
            self._idle.pop().abort()

    async def _asked(self, connection: EngineConnection, request: bytes) -> EngineAnswer:
        try:
            await connection.ask(request)
            return EngineAnswer(self, connection)
        except BaseException:
            connection.abort()
            raise

    def _kept(self) -> EngineConnection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open and time.monotonic() - connection.idle_since_s < GATEWAY_KEEPS_IDLE_S:
                return connection
            connection.abort()
        return None

    async def _connected(self) -> EngineConnection:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_LIMIT_S):
                if self._socket is not None:
                    _, connection = await loop.create_unix_connection(self._new, str(self._socket))
                else:
                    port = self._url.port or (443 if self._tls else 80)
                    _, connection = await loop.create_connection(
                        self._new, self._url.host, port, ssl=self._tls
                    )
        except OSError as error:  # TimeoutError and ssl.SSLError among them
            raise EngineLost(f"no connection ({str(error) or 'it took too long'})", began=False) from None
        return connection

    def _new(self) -> EngineConnection:
        return EngineConnection(self._forget)

    def _forget(self, connection: EngineConnection) -> None:
        if connection in self._idle:
            self._idle.remove(connection)

    def _request(self, path: str, content: bytes, headers: Mapping[str, str]) -> bytes:
        own = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        return b"POST %b%b HTTP/1.1\r\n%b%bcontent-length: %d\r\n\r\n%b" % (
            self._prefix,
            path.encode("ascii"),
            self._head,
            own.encode("latin-1"),
            len(content),
            content,
        )


class _Decompressor(Protocol):
    def decompress(self, data: bytes, /) -> bytes: ...


def _decompressor(encoding: str | None) -> _Decompressor | None:
    """What undoes an encoding that we did not ask for; EngineLost for one that we do not know."""
    if encoding in (None, "", "identity"):
        return None
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise EngineLost(f"its answer is encoded as {encoding}, unasked", began=True)
    return zlib.decompressobj(_ANY_ZLIB)


def _head(url: httpx.URL, headers: Mapping[str, str]) -> bytes:
    named: dict[str, Any] = {
        "host": url.netloc.decode("ascii"),
        "user-agent": f"decant/{__version__}",
        "accept": "*/*",
        "accept-encoding": "identity",
        "content-type": "application/json",
    }
    if url.userinfo:
        named["authorization"] = f"Basic {base64.b64encode(url.userinfo).decode('ascii')}"
    named |= {name.lower(): value for name, value in headers.items()}
    return "".join(f"{name}: {value}\r\n" for name, value in named.items()).encode("latin-1")
