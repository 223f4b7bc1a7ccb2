"""One HTTP/1.1 connection of the lean client: bytes out, and a response in whose reads are stamped.

Nothing is parsed while an answer comes but the framing of HTTP: what is read is stamped by the kernel and
kept, and the events in it are looked at when the answer is whole.
"""

import asyncio
import socket
import time
from collections.abc import Callable

import httptools

from decant.arrival import Received, receive_events

_READ_BYTES = 64 * 1024
_MOST_BODY_BYTES = 256 * 2**20
_DONE = b"data: [DONE]"
_DONE_WITHIN = 64
# A stream whose [DONE] came is whole; its connection is only reused when the response ends soon after.
_END_LIMIT_S = 0.25


class ConnectionBroken(Exception):
    """The connection ended before the response did; `began` says whether any of it had come."""

    def __init__(self, words: str, *, began: bool) -> None:
        super().__init__(words)
        self.began = began


class WireConnection:
    """A connected socket that carries one request at a time; `on_idle_end` is told when it ends unused."""

    def __init__(self, sock: socket.socket, on_idle_end: Callable[["WireConnection"], None]) -> None:
        self.was_reused = False
        self._used = False
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._on_idle_end = on_idle_end
        self._waiter: asyncio.Future[Received] | None = None
        self._ender: asyncio.TimerHandle | None = None
        self._reset()
        self._loop.add_reader(sock.fileno(), self._readable)

    def _reset(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._pieces: list[tuple[float, bytes]] = []
        self._began_s: float | None = None
        self._at_s = 0.0
        self._body_bytes = 0
        self._tail = b""
        self._complete = self._cut = self._is_done = False

    @property
    def reusable(self) -> bool:
        """Whether another request may follow."""
        return self._sock.fileno() != -1 and not self._cut

    async def exchange(self, request: bytes, *, on_sent: Callable[[float], None]) -> Received:
        """Sends a request and waits for its response; ConnectionBroken, OSError when there is none.

        `on_sent` gets the time at which the first byte leaves.
        """
        assert self._waiter is None, "one request at a time"
        self._reset()
        self.was_reused, self._used = self._used, True
        self._waiter = self._loop.create_future()
        try:
            on_sent(time.perf_counter())
            await self._send(request)
            return await self._waiter
        finally:
            self._waiter = None
            if self._ender is not None:
                self._ender.cancel()
                self._ender = None
            if not self._complete:
                self.close()

    def so_far(self) -> Received | None:
        """What came of a response that is given up; None before its head."""
        return None if self._began_s is None else self._received(None)

    def close(self) -> None:
        """Closes the socket; what waits on it gets no answer."""
        if self._sock.fileno() != -1:
            self._loop.remove_reader(self._sock.fileno())
            self._sock.close()

    async def _send(self, request: bytes) -> None:
        try:
            sent = self._sock.send(request)
        except BlockingIOError:
            sent = 0
        if sent < len(request):
            await self._loop.sock_sendall(self._sock, memoryview(request)[sent:])

    def _readable(self) -> None:
        try:
            parts = receive_events(self._sock, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._ended(str(error) or type(error).__name__)
            return
        if not parts[0][0]:
            self._ended("the server closed the connection")
            return
        if self._waiter is None:
            self._ended("the server spoke unasked")
            return
        try:
            for content, self._at_s in parts:
                self._parser.feed_data(content)
        except httptools.HttpParserError as error:
            self._ended(f"not HTTP: {error}")
            return
        if self._is_done and not self._complete and self._ender is None:
            self._ender = self._loop.call_later(_END_LIMIT_S, self._end_without_its_end)

    def _ended(self, words: str) -> None:
        self.close()
        waiter = self._waiter
        if waiter is None:
            self._on_idle_end(self)
            return
        if waiter.done():
            return
        if self._began_s is None:
            waiter.set_exception(ConnectionBroken(words, began=False))
            return
        # Without a length, the end of the connection is the end of the response (RFC 9112, 6.3).
        bounded = "content-length" in self._headers or "chunked" in self._headers.get("transfer-encoding", "")
        fault = ConnectionBroken(words, began=True) if bounded else None
        waiter.set_result(self._received(fault))

    def _received(self, fault: Exception | None) -> Received:
        return Received(
            status=self._parser.get_status_code(),
            headers=self._headers,
            began_s=self._began_s or self._at_s,
            pieces=self._pieces,
            fault=fault,
        )

    # What follows is called by httptools.

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header of the response."""
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._began_s = self._at_s

    def on_body(self, body: bytes) -> None:
        """A piece of the body, its transfer coding removed."""
        self._pieces.append((self._at_s, body))
        self._body_bytes += len(body)
        self._tail = (self._tail + body)[-_DONE_WITHIN:]
        if self._body_bytes > _MOST_BODY_BYTES:
            self._ended(f"more than {_MOST_BODY_BYTES} bytes in one answer")
        elif self._tail.rstrip().endswith(_DONE):
            self._is_done = True

    def on_message_complete(self) -> None:
        """The response is whole."""
        if 100 <= self._parser.get_status_code() < 200:
            self._headers, self._began_s = {}, None
            return
        self._complete = True
        self._cut = not self._parser.should_keep_alive()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(self._received(None))
        if self._cut:
            self.close()

    def _end_without_its_end(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(self._received(None))
