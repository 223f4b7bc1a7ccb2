"""A small HTTP/1.1 server whose answers leave at known times: what a benchmark's ruler is checked against.

A request counts from when its last byte arrived by the kernel's stamp: a busy server is late by its sends
alone.
"""

import asyncio
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import httptools

from decant.arrival import receive, stamp_arrivals

_READ_BYTES = 256 * 1024
_BACKLOG = 4096


@dataclass(frozen=True, slots=True)
class TimedRequest:
    """A whole request; `arrived_s` on `time.perf_counter`. One that keeps no connection is its last."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    arrived_s: float
    keeps_connection: bool


class Exchange:
    """One request and the way back to who asked. Sending to a client that is gone does nothing."""

    def __init__(self, request: TimedRequest, connection: "_Connection") -> None:
        self.request = request
        self.on_gone: Callable[[], None] = lambda: None
        self._connection = connection

    @property
    def is_gone(self) -> bool:
        """Whether the client closed its connection."""
        return self._connection.current is not self

    def begin(self, content_type: str) -> bytes:
        """The head of a chunked answer, to be sent with or before its first chunk."""
        return (
            f"HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ntransfer-encoding: chunked\r\n\r\n".encode()
        )

    def send(self, content: bytes) -> None:
        """Bytes of the answer, as they are."""
        if not self.is_gone:
            self._connection.write(content)

    def end(self, content: bytes = b"") -> None:
        """The last bytes; the connection takes the next request, unless the client asked to close it."""
        if not self.is_gone:
            self._connection.write(content)
            self._connection.finish(keeps=self.request.keeps_connection)

    def answer(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """A whole JSON answer."""
        lines = [f"{name}: {value}\r\n" for name, value in (headers or {}).items()]
        own = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        self.end(f"HTTP/1.1 {status} {status}\r\n{''.join(lines)}{own}".encode("latin-1") + body)

    def cut(self) -> None:
        """Closes the connection in the middle of the answer."""
        if not self.is_gone:
            self._connection.close()


Handler = Callable[[Exchange], None]


def chunk(content: bytes) -> bytes:
    """One chunk of a chunked answer."""
    return b"%x\r\n%b\r\n" % (len(content), content)


LAST_CHUNK = b"0\r\n\r\n"


class _Connection:
    """Reads requests and hands them over, one at a time."""

    def __init__(self, sock: socket.socket, handler: Handler) -> None:
        self.current: Exchange | None = None
        self._sock = sock
        self._handler = handler
        self._loop = asyncio.get_running_loop()
        self._unsent = b""
        self._ends = False
        self._waiting: list[Exchange] = []
        self._reset()
        self._parser = httptools.HttpRequestParser(self)
        self._loop.add_reader(sock.fileno(), self._readable)

    def _reset(self) -> None:
        self._path, self._headers, self._body = b"", dict[str, str](), list[bytes]()

    def write(self, content: bytes) -> None:
        """Sends at once what the socket takes, the rest when it takes more."""
        if self._unsent:
            self._unsent += content
            return
        try:
            sent = self._sock.send(content) if content else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        if sent < len(content):
            self._unsent = content[sent:]
            self._loop.add_writer(self._sock.fileno(), self._writable)

    def finish(self, *, keeps: bool) -> None:
        """The answer is whole: the next request may be handled, or the connection ends once all is sent."""
        self.current = None
        if not keeps:
            self._ends = True
            self._close_if_sent()
        elif self._waiting:
            self._hand_over(self._waiting.pop(0))

    def close(self) -> None:
        """Closes the socket and tells who was answering."""
        if self._sock.fileno() == -1:
            return
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        gone, self.current = self.current, None
        if gone is not None:
            gone.on_gone()

    def _readable(self) -> None:
        try:
            content, self._at_s = receive(self._sock, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            content = b""
        if not content:
            self.close()
            return
        try:
            self._parser.feed_data(content)
        except httptools.HttpParserError:
            self.close()

    def _writable(self) -> None:
        unsent, self._unsent = self._unsent, b""
        self._loop.remove_writer(self._sock.fileno())
        self.write(unsent)
        self._close_if_sent()

    def _close_if_sent(self) -> None:
        if self._ends and not self._unsent:
            self.close()

    def _hand_over(self, exchange: Exchange) -> None:
        self.current = exchange
        self._handler(exchange)

    # What follows is called by httptools.

    def on_url(self, url: bytes) -> None:
        """A piece of the request's target."""
        self._path += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header of the request."""
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        method, path = self._parser.get_method().decode(), self._path.partition(b"?")[0].decode("latin-1")
        keeps_connection = self._parser.should_keep_alive()
        request = TimedRequest(
            method, path, self._headers, b"".join(self._body), self._at_s, keeps_connection
        )
        self._reset()
        exchange = Exchange(request, self)
        if self.current is None:
            self._hand_over(exchange)
        else:
            self._waiting.append(exchange)


async def serve(sock: socket.socket, handler: Handler) -> None:
    """Hands every request on the listening socket to `handler`, until cancelled."""
    loop = asyncio.get_running_loop()
    sock.listen(_BACKLOG)
    sock.setblocking(False)
    while True:
        client, _ = await loop.sock_accept(sock)
        client.setblocking(False)
        if client.family != socket.AF_UNIX:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            stamp_arrivals(client)
        _Connection(client, handler)
