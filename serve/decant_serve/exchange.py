"""One request's state on its way through the gateway: what has been sent back, and when what happened."""

import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Scope, Send

from decant.timing import RequestTiming
from decant_serve.calls import Route
from decant_serve.openai_errors import ApiFault
from decant_serve.passage import Passage
from decant_serve.timing_log import TimingRecord

_CLIENT_GONE_STATUS = 499
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/-]{1,128}")


def request_id_of(scope: Scope) -> str:
    """The client's x-request-id where it is fit for logs and headers, else a new one."""
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    return given.decode() if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex


@dataclass(slots=True)
class Exchange:
    """What happened to one request so far; clock readings are `time.perf_counter()`."""

    request_id: str
    route: Route
    received_s: float = field(default_factory=time.perf_counter)
    admitted_s: float | None = None
    first_byte_s: float | None = None
    last_byte_s: float | None = None
    streamed: bool = False
    status: int = 0
    error_kind: str | None = None
    passage: Passage = field(default_factory=lambda: Passage(wants_usage=False))

    def fail(self, kind: str, status: int) -> None:
        """Notes what went wrong; a stream that has begun keeps its status."""
        self.error_kind = kind
        self.status = self.status or status

    def leave(self) -> None:
        """Notes that the client went away."""
        self.fail("client_gone", _CLIENT_GONE_STATUS)

    def received(self, at_s: float) -> None:
        """Notes a read from the engine."""
        self.first_byte_s = self.first_byte_s or at_s
        self.last_byte_s = at_s

    def record(self, model: str) -> TimingRecord:
        """The timing record."""
        return TimingRecord(
            timing=self.timing(),
            model=model,
            route=self.route,
            streamed=self.streamed,
            engine=self.passage.engine_numbers,
        )

    def timing(self) -> RequestTiming:
        """Every time counted from the arrival of the request; what was not reached is None."""
        times_s = [at_s - self.received_s for at_s in self.passage.content_times_s]
        usage: Mapping[str, Any] = self.passage.usage or {}
        details: Mapping[str, Any] = usage.get("prompt_tokens_details") or {}
        end_s = times_s[-1] if times_s else self._since_arrival(self.last_byte_s)
        return RequestTiming(
            request_id=self.request_id,
            actual_s=self.received_s,
            ttfb_s=self._since_arrival(self.first_byte_s),
            ttft_s=times_s[0] if times_s else None,
            e2e_s=None if self.error_kind else end_s,
            queue_s=self._since_arrival(self.admitted_s),
            chunk_times_s=tuple(times_s),
            prompt_tokens=usage.get("prompt_tokens"),
            completion_tokens=usage.get("completion_tokens"),
            cached_tokens=details.get("cached_tokens"),
            status=self.status,
            finish_reason=self.passage.finish_reason,
            error_kind=self.error_kind,
        )

    def _since_arrival(self, at_s: float | None) -> float | None:
        return None if at_s is None else at_s - self.received_s


class Reply:
    """Writes the answer to one client: whole, or as a stream that begins with its first bytes."""

    def __init__(self, send: Send, exchange: Exchange) -> None:
        self._send = send
        self._exchange = exchange
        self._streams = False
        self._whole: tuple[int, bytes, dict[str, str]] | None = None

    async def write(self, data: bytes) -> None:
        """Sends a part of a stream."""
        if not self._streams:
            self._streams = True
            await self._start(
                200, {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
            )
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    def set_whole(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """What `finish` will send, where no stream has begun."""
        self._whole = (status, body, dict(headers or {}))

    async def fail(self, fault: ApiFault) -> None:
        """Ends with an error: as its own answer, or as the last event of a stream that has begun."""
        self._exchange.fail(fault.code or "refused", fault.status)
        if self._streams:
            await self._send({"type": "http.response.body", "body": fault.event(), "more_body": True})
        else:
            self.set_whole(fault.status, fault.body(), fault.headers)
        await self.finish()

    async def finish(self) -> None:
        """Sends what is left."""
        body = b""
        if not self._streams:
            assert self._whole is not None, "an answer to finish"
            status, body, headers = self._whole
            await self._start(
                status, {"content-type": "application/json", **headers, "content-length": str(len(body))}
            )
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self._exchange.status = status
        named = {**headers, "x-request-id": self._exchange.request_id}
        raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in named.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})
