"""One HTTP/1.1 connection to an engine: a request goes out whole, its answer comes in as it arrives.

Nothing is looked at but the framing of HTTP. A read is stamped when it comes and kept until it is asked for;
of an answer that nobody takes, no more is read than a bound.
"""

import asyncio
import time
from collections.abc import Callable
from typing import cast

import httptools

_HEAD_LIMIT_BYTES = 64 * 2**10
# What an engine may be ahead of a client that reads slowly.
_HELD_BYTES = 256 * 2**10

Piece = tuple[float, bytes]
"""One read of a body, its transfer coding removed: when it came, on `time.perf_counter`, and what."""


class EngineLost(Exception):
    """No connection, or one that ended or stopped to be HTTP before the answer was whole.

    `began` says whether anything of the answer had come.
    """

    def __init__(self, words: str, *, began: bool) -> None:
        super().__init__(words)
        self.began = began


class EngineConnection(asyncio.Protocol):
    """Carries one exchange at a time; `on_idle_end` is told when it ends between two of them."""

    def __init__(self, on_idle_end: Callable[["EngineConnection"], None]) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.idle_since_s = 0.0
        self._on_idle_end = on_idle_end
        self._loop = asyncio.get_running_loop()
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._is_asked = self._is_head_read = self._is_paused = False
        self._is_complete = True
        self._keeps = True
        self._fault: EngineLost | None = None
        self._head_bytes = self._held_bytes = 0
        self._body: list[bytes] = []
        self._pieces: list[Piece] = []

    @property
    def is_open(self) -> bool:
        """Whether a request can go out."""
        return self._transport is not None and not self._transport.is_closing()

    @property
    def is_complete(self) -> bool:
        """Whether the whole answer has come; some of it may still lie here."""
        return self._is_complete

    async def ask(self, request: bytes) -> None:
        """Sends a request and returns with the head of its answer; EngineLost when there is none."""
        assert not self._is_asked, "one exchange at a time"
        if self._transport is None or self._transport.is_closing():
            raise EngineLost("the connection is closed", began=False)
        self.status, self.headers = 0, {}
        self._is_asked, self._is_head_read, self._is_complete = True, False, False
        self._fault, self._head_bytes, self._held_bytes = None, 0, 0
        self._pieces = []
        self._transport.write(request)
        while not self._is_head_read:
            if self._fault is not None:
                raise self._fault
            await self._progress()

    async def pieces(self) -> list[Piece]:
        """What came of the body since the last call, waiting for some; empty at its end. EngineLost."""
        while not self._pieces:
            if self._fault is not None:
                raise self._fault
            if self._is_complete:
                return []
            await self._progress()
        pieces, self._pieces, self._held_bytes = self._pieces, [], 0
        if self._is_paused and self.is_open:
            assert self._transport is not None
            self._is_paused = False
            self._transport.resume_reading()
        return pieces

    def rest(self) -> bool:
        """Ends an exchange; False, and the connection is closed, where no other can follow it."""
        is_reusable = (
            self._is_complete
            and self.is_open
            and not self._is_paused
            and self._transport is not None
            # An answer may come before all of the question has gone.
            and not self._transport.get_write_buffer_size()
            and self._keeps
        )
        self._is_asked = False
        if not is_reusable:
            self.abort()
        return is_reusable

    def abort(self) -> None:
        """Closes at once: what the engine still sends for this request it notices to be in vain."""
        self._is_asked = False
        if self._transport is not None:
            self._transport.abort()

    async def _progress(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, words: str) -> None:
        if self._is_asked and not self._is_complete and self._fault is None:
            self._fault = EngineLost(words, began=bool(self._head_bytes))
        if self._transport is not None:
            self._transport.abort()
        self._wake()

    # What follows is called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Connected."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """One read."""
        if not self._is_asked or self._is_complete:
            self._fail("the engine spoke unasked")
            return
        at_s = time.perf_counter()
        self._head_bytes += 0 if self._is_head_read else len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(f"not an HTTP answer: {error or type(error).__name__}")
        if not self._is_head_read and self._head_bytes > _HEAD_LIMIT_BYTES:
            self._fail(f"more than {_HEAD_LIMIT_BYTES} bytes of headers")
        if self._body:
            self._keep(at_s)
        self._wake()

    def _keep(self, at_s: float) -> None:
        piece = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        self._pieces.append((at_s, piece))
        self._held_bytes += len(piece)
        if self._held_bytes > _HELD_BYTES and not self._is_complete and not self._is_paused and self.is_open:
            assert self._transport is not None
            self._is_paused = True
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end, whoever closed."""
        if not self._is_asked:
            self._on_idle_end(self)
            return
        # Without a length, the end of the connection is the end of the answer (RFC 9112, 6.3).
        is_bounded = "content-length" in self.headers or "transfer-encoding" in self.headers
        if exc is None and self._is_head_read and not is_bounded and self._fault is None:
            self._is_complete = True
        self._fail(str(exc or "") or "the engine closed the connection")

    # What follows is called by httptools.

    def on_message_begin(self) -> None:
        """A head begins, and none may follow the whole answer."""
        if self._is_complete:
            raise EngineLost("a second answer", began=True)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header of the answer, or of its trailer."""
        if not self._is_head_read:
            self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """The head is whole; of an interim answer it is not the one that is waited for."""
        status = self._parser.get_status_code()
        if status >= 200:
            self.status, self._is_head_read = status, True

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """The answer is whole."""
        if self._is_head_read:
            self._is_complete, self._keeps = True, self._parser.should_keep_alive()
        else:
            self.headers = {}
