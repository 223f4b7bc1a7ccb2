"""One request's state on its way through the gateway: what has been sent back, and when what happened."""

import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from starlette.types import Scope, Send

from decant.timing import RequestTiming
from decant_serve.access import Key
from decant_serve.breakdown import Breakdown, break_down, engine_queue_s
from decant_serve.gateway import ServedModel
from decant_serve.openai_errors import ApiFault
from decant_serve.passage import Passage
from decant_serve.shards.ledger import Marks, ShardTiming
from decant_serve.timing_log import TimingRecord
from decant_serve.tracing import Trace, Untraced
from decant_serve.voices import PlainVoice, Voice

SOURCE_HEADER = "x-decant-source"

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
    route: str
    key: Key | None = None
    accepted_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    received_s: float = field(default_factory=time.perf_counter)
    read_s: float | None = None
    admitted_s: float | None = None
    first_byte_s: float | None = None
    last_byte_s: float | None = None
    served: ServedModel | None = None
    streamed: bool = False
    status: int = 0
    error_kind: str | None = None
    choices: int = 1
    reserved_tokens: int = 0
    trace: Trace = field(default_factory=Untraced)
    asked: Mapping[str, Any] = field(default_factory=dict[str, Any])
    source: str | None = None
    passage: Passage = field(default_factory=lambda: Passage(wants_usage=False))

    def reserve(self, tokens: int) -> None:
        """Charges the key for what the request may come to; ApiFault 429 when it has not that much left."""
        if self.key is not None:
            self.key.limit.reserve(tokens)
            self.reserved_tokens = tokens

    def settle(self) -> None:
        """Charges the key for what the request used instead."""
        if self.key is not None:
            self.key.limit.settle(reserved=self.reserved_tokens, used=self.tokens_used())

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

    def record(self) -> TimingRecord:
        """The timing record, as far as things have come."""
        return TimingRecord(
            timing=self.timing(),
            breakdown=self.breakdown(),
            accepted_at=self.accepted_at,
            model=self.served.name if self.served else None,
            engine_name=self.served.engine_name if self.served else None,
            route=self.route,
            streamed=self.streamed,
            key=self.key.name if self.key else None,
            engine=self.passage.engine_numbers,
            shards=self._shards(),
            source=self.source,
        )

    def timing(self) -> RequestTiming:
        """Every time counted from the arrival of the request; what was not reached is None."""
        times_s = [at_s - self.received_s for at_s in self.passage.content_times_s]
        usage: Mapping[str, Any] = self.passage.usage or {}
        completion_tokens: int | None = usage.get("completion_tokens")
        end_s = times_s[-1] if times_s else self._since_arrival(self.last_byte_s)
        return RequestTiming(
            request_id=self.request_id,
            actual_s=self.received_s,
            ttfb_s=self._since_arrival(self.first_byte_s),
            ttft_s=times_s[0] if times_s else None,
            e2e_s=None if self.error_kind else end_s,
            queue_s=self._queue_s(),
            chunk_times_s=tuple(times_s),
            # Of several answers, chunks come in turns: a gap between two says nothing of either.
            chunk_tokens=_chunk_tokens(len(times_s), completion_tokens) if self.choices == 1 else (),
            prompt_tokens=usage.get("prompt_tokens"),
            completion_tokens=completion_tokens,
            cached_tokens=self._cached_tokens(usage),
            status=self.status,
            finish_reason=self.passage.finish_reason,
            error_kind=self.error_kind,
        )

    def breakdown(self) -> Breakdown:
        """Where the time went until now."""
        # Of a failure, the wait for the engine's next byte is the engine's time and not the gateway's.
        engine_ended_s = None if self.error_kind else self._since_arrival(self.last_byte_s)
        return break_down(
            total_s=time.perf_counter() - self.received_s,
            read_s=self._since_arrival(self.read_s),
            admitted_s=self._since_arrival(self.admitted_s),
            engine_ended_s=engine_ended_s,
            engine=self.passage.engine_numbers,
        )

    def _shards(self) -> ShardTiming | None:
        """What the engine's ranks did for this request so far, where they are timed."""
        collector = self.served.shards if self.served else None
        if collector is None or self.admitted_s is None:
            return None
        marks = Marks(
            received_s=self.received_s,
            admitted_s=self.admitted_s,
            ended_s=self.last_byte_s or time.perf_counter(),
            engine_queue_s=engine_queue_s(self.passage.engine_numbers),
        )
        return collector.timing(self.request_id, marks)

    def tokens_used(self) -> int:
        """What the request counts against its key: its usage, or what was seen of an answer without one."""
        usage = self.passage.usage or {}
        told = sum(usage.get(name) or 0 for name in ("prompt_tokens", "completion_tokens"))
        return told or len(self.passage.content_times_s)

    def _cached_tokens(self, usage: Mapping[str, Any]) -> int | None:
        details: Mapping[str, Any] = usage.get("prompt_tokens_details") or {}
        told: int | None = details.get("cached_tokens")
        return (self.passage.engine_numbers or {}).get("cache_n") if told is None else told

    def _queue_s(self) -> float | None:
        if self.admitted_s is None or self.read_s is None:
            return None
        return self.admitted_s - self.read_s

    def _since_arrival(self, at_s: float | None) -> float | None:
        return None if at_s is None else at_s - self.received_s


def _chunk_tokens(chunks: int, completion_tokens: int | None) -> tuple[int, ...]:
    """One token each where the counts agree, the end token aside; () where nobody knows."""
    if completion_tokens is None or completion_tokens - chunks not in (0, 1):
        return ()
    return (1,) * chunks


class Reply:
    """Writes the answer to one client: whole, or as a stream that begins with its first bytes."""

    def __init__(self, send: Send, exchange: Exchange) -> None:
        self._send = send
        self._exchange = exchange
        self.voice: Voice = PlainVoice()
        self._streams = False
        self._held: list[bytes] = []
        self._whole: tuple[int, bytes, dict[str, str]] | None = None

    def hold(self, part: bytes) -> None:
        """Takes a part of a stream, for `flush` or `finish` to send."""
        self._held.append(part)

    async def flush(self) -> None:
        """Sends what is held of a stream."""
        if self._held:
            await self._begin_stream()
            await self._send({"type": "http.response.body", "body": self._taken(), "more_body": True})

    def set_whole(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        """What `finish` will send, where no stream has begun."""
        self._whole = (status, body, dict(headers or {}))

    async def fail(self, fault: ApiFault) -> None:
        """Ends with an error: as its own answer, or as the last event of a stream that has begun."""
        if self._streams or self._held:
            self._exchange.fail(fault.code or "refused", 200)
            self.hold(self.voice.error_event(fault))
        else:
            self._exchange.fail(fault.code or "refused", fault.status)
            self.set_whole(fault.status, fault.body(), fault.headers)
        await self.finish()

    async def finish(self) -> None:
        """Sends what is left, and the end."""
        if self._streams or self._held:
            await self._begin_stream()
            body = self._taken()
        else:
            assert self._whole is not None, "an answer to finish"
            status, body, headers = self._whole
            await self._start(
                status, {"content-type": "application/json", **headers, "content-length": str(len(body))}
            )
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    def _taken(self) -> bytes:
        held, self._held = self._held, []
        return held[0] if len(held) == 1 else b"".join(held)

    async def _begin_stream(self) -> None:
        if not self._streams:
            self._streams = True
            await self._start(
                200, {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
            )

    async def _start(self, status: int, headers: Mapping[str, str]) -> None:
        self._exchange.status = status
        limits = self._exchange.key.limit.headers() if self._exchange.key else {}
        source = {SOURCE_HEADER: self._exchange.source} if self._exchange.source else {}
        named = {
            **limits,
            **source,
            **headers,
            "server-timing": self._exchange.breakdown().server_timing(),
        }
        raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in named.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})
