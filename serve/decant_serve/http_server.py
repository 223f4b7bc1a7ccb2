"""uvicorn with a bound on headers, and a way out that begins with readiness."""

import asyncio
import signal
from types import FrameType

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from decant_serve.deadlines import Drain
from decant_serve.front import HEAD_LIMIT_BYTES
from decant_serve.openai_errors import headers_too_large

_KEEP_ALIVE_S = 75
# The drain ends every request itself; uvicorn's own end is for what does not listen.
_GRACE_S = 10


class BoundedHttp(HttpToolsProtocol):
    """uvicorn's parser, which alone would take headers of any size into memory."""

    _head_bytes = 0
    _is_head_read = False

    def data_received(self, data: bytes) -> None:
        """Parses on, or answers 431 and closes when a head outgrows its limit."""
        self._head_bytes = 0 if self._is_head_read else self._head_bytes + len(data)
        # One read may hold the end of a head and a whole body: only a head that goes on counts.
        super().data_received(data)
        too_large = not self._is_head_read and self._head_bytes > HEAD_LIMIT_BYTES
        if too_large and not self.transport.is_closing():
            self._refuse()

    def on_message_begin(self) -> None:
        """A new head."""
        self._is_head_read = False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is there."""
        self._is_head_read = True
        super().on_headers_complete()

    def _refuse(self) -> None:
        body = headers_too_large(HEAD_LIMIT_BYTES).body()
        head = (
            "HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


class HttpServer(uvicorn.Server):
    """Serves until SIGTERM or SIGINT: readiness goes first, then the listener; what is in flight may finish.

    A second signal skips the wait between the first two.
    """

    def __init__(self, app: ASGIApp, *, drain: Drain, drain_limit_s: float, ready_gap_s: float) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=BoundedHttp,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                # Who asked is told by its key; what a proxy says of it would be read for nothing.
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=round(ready_gap_s + drain_limit_s) + _GRACE_S,
            )
        )
        self._drain = drain
        self._ready_gap_s = ready_gap_s
        self._loop = asyncio.get_running_loop()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Takes the signal; the loop does the rest."""
        if self._drain.is_draining or self._ready_gap_s == 0:
            self._loop.call_soon_threadsafe(self._drain.begin)
            self._stop_listening(sig)
        else:
            self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        self._drain.begin()
        self._loop.call_later(self._ready_gap_s, self._stop_listening, signal.SIGTERM)

    def _stop_listening(self, sig: int) -> None:
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True
