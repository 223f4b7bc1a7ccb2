"""One try of a request: what came back, stamped at socket read, or the error that says how far it came."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, NoReturn, cast

import httpx
from pydantic import ValidationError

from decant.api_error import ADVICE, ApiError, ErrorKind
from decant.arrival import Received
from decant.text_answer import TextAnswer
from decant.timing import RequestTiming
from decant.wire import (
    DONE,
    ChatChunk,
    ChatChunkChoice,
    ChatDelta,
    ChatResponse,
    ChoiceLogprobs,
    ErrorBody,
    SseDecoder,
    TokenLogprob,
    Usage,
    parse_error,
)

Route = Literal["chat", "completions"]

_DRAIN_LIMIT_S = 0.25
_MESSAGE_CHARACTERS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A whole answer. `reasoning` is what the server sent as such, apart from `text`, if anything."""

    text: str
    reasoning: str | None
    finish_reason: str | None
    usage: Usage | None
    logprobs: tuple[TokenLogprob, ...] | None
    timing: RequestTiming
    model: str | None
    headers: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What is asked, the same in every try."""

    method: str
    url: str
    request_id: str
    content: bytes | None = None
    intended_s: float | None = None
    route: Route = "chat"


@dataclass(slots=True)
class _Answer:
    """What came of an answer so far; times are offsets from the actual send."""

    model: str | None = None
    finish_reason: str | None = None
    usage: Usage | None = None
    ended_s: float | None = None
    done: bool = False
    content: list[str] = field(default_factory=list[str])
    reasoning: list[str] = field(default_factory=list[str])
    logprobs: list[TokenLogprob] = field(default_factory=list[TokenLogprob])
    chunk_times_s: list[float] = field(default_factory=list[float])
    chunk_tokens: list[int] = field(default_factory=list[int])
    tokens_before_chunk: int = 0

    def take_chunk(self, chunk: ChatChunk, at_s: float) -> None:
        self.model = chunk.model or self.model
        self.usage = chunk.usage or self.usage
        for choice in chunk.choices:
            self.take_text(choice.delta, choice.logprobs)
            if choice.delta.is_content:
                self.chunk_times_s.append(at_s)
                self.chunk_tokens.append(self.tokens_before_chunk)
                self.tokens_before_chunk = 0
                self.ended_s = at_s
            if choice.finish_reason is not None:
                self.finish_reason = choice.finish_reason
                # An empty answer has no last content: its end is the event that says so.
                self.ended_s = at_s if self.ended_s is None else self.ended_s

    def take_text(self, delta: ChatDelta, logprobs: ChoiceLogprobs | None) -> None:
        self.content.append(delta.content or "")
        self.reasoning.append(delta.reasoning_text)
        if logprobs is not None and logprobs.content:
            self.logprobs += logprobs.content
            self.tokens_before_chunk += len(logprobs.content)

    @property
    def known_chunk_tokens(self) -> tuple[int, ...]:
        # llama.cpp gives no logprobs for tokens without text of their own. The sum then falls short by more
        # than the end-of-sequence token, and how many came in which chunk is not known.
        told = sum(self.chunk_tokens)
        short = 0 if self.usage is None else self.usage.completion_tokens - told
        return tuple(self.chunk_tokens) if all(self.chunk_tokens) and short in (0, 1) else ()

    @property
    def is_whole(self) -> bool:
        return self.done or self.finish_reason is not None


class Attempt:
    """The record of one try while it goes on."""

    def __init__(self, call: Call, tries: int) -> None:
        self.call = call
        self.connected = False
        self._tries = tries
        self._started_s = time.perf_counter()
        self._actual_s: float | None = None
        self._ttfb_s: float | None = None
        self._status = 0
        self._answer = _Answer()

    async def trace(self, event: str, _details: object) -> None:
        """httpcore's trace: the first bytes out are the actual send; no connect means a reused connection."""
        if event.endswith("connect_tcp.started"):
            self.connected = True
        elif event.endswith("send_request_headers.started"):
            self.sent(time.perf_counter())

    def sent(self, at_s: float) -> None:
        """The bytes left at `at_s`; only the first time counts, for what is sent again was due then."""
        self._actual_s = at_s if self._actual_s is None else self._actual_s

    async def check(self, response: httpx.Response) -> None:
        """Stamps the first byte of the response; ApiError when its status is not a success."""
        self._ttfb_s = self._now_s()
        self._status = response.status_code
        if not response.is_success:
            self._refuse(await response.aread(), response.headers)

    def replayed(self, received: Received, *, stream: bool) -> Completion:
        """The answer in a response that was read before; ApiError when it is cut, refused, or no answer."""
        self._status, self._ttfb_s = received.status, received.began_s - self.sent_s
        body = b"".join(piece for _, piece in received.pieces)
        if not 200 <= self._status < 300:
            self._refuse(body, httpx.Headers(dict(received.headers)))
        if stream and "application/json" not in received.headers.get("content-type", ""):
            self._replay_stream(received)
        elif received.fault is not None:
            raise self.broken(received.fault)
        else:
            ended_s = received.pieces[-1][0] if received.pieces else received.began_s
            self._take_whole(body, ended_s - self.sent_s)
        return self._completion(dict(received.headers))

    def progress(self, received: Received) -> None:
        """Takes what came of a stream that is given up, so that its error says how far it came."""
        self._status, self._ttfb_s = received.status, received.began_s - self.sent_s
        with suppress(ApiError, ValueError):
            decoder = SseDecoder()
            for at_s, piece in received.pieces:
                self._take_events(decoder.feed(piece), at_s - self.sent_s)

    def _refuse(self, body: bytes, headers: httpx.Headers) -> NoReturn:
        text = body.decode("utf-8", errors="replace")
        reason = httpx.codes.get_reason_phrase(self._status)
        found = parse_error(_json(text)) or ErrorBody(message=text.strip() or reason or "no words")
        if 300 <= self._status < 400 and "location" in headers:
            found = ErrorBody(message=f"redirects to {headers['location']}; set base_url to that")
        raise self.error(_kind(self._status), found, retry_after=_retry_after_s(headers))

    async def completion(self, response: httpx.Response, *, stream: bool) -> Completion:
        """Reads the answer to its end; ApiError when it is cut, or is no answer."""
        if stream and "application/json" not in response.headers.get("content-type", ""):
            await self._read_stream(response)
        else:
            body = await response.aread()
            self._take_whole(body, self._now_s())
        return self._completion(dict(response.headers))

    def _completion(self, headers: dict[str, str]) -> Completion:
        answer = self._answer
        return Completion(
            text="".join(answer.content),
            reasoning="".join(answer.reasoning) or None,
            finish_reason=answer.finish_reason,
            usage=answer.usage,
            logprobs=tuple(answer.logprobs) or None,
            timing=self.timing(),
            model=answer.model,
            headers=headers,
        )

    async def json_object(self, response: httpx.Response) -> dict[str, Any]:
        """The answer as a JSON object; ApiError when it is none."""
        body = _json((await response.aread()).decode("utf-8", errors="replace"))
        if not isinstance(body, dict):
            raise self.error("bad_response", "the answer is not a JSON object")
        return cast(dict[str, Any], body)

    def broken(self, error: Exception) -> ApiError:
        """The error of a connection that broke: before the content it can be tried again, later it cannot."""
        return self.error("stream_broken" if self._answer.chunk_times_s else "reset", _words(error))

    def error(
        self,
        kind: ErrorKind,
        error: ErrorBody | str,
        *,
        status: int | None = None,
        retry_after: float | None = None,
    ) -> ApiError:
        """The error of this try, with its timing, on one line."""
        body = ErrorBody(message=error) if isinstance(error, str) else error
        status = self._status if status is None else status
        where = f"{self.call.method} {self.call.url}"
        what = f"{kind} (HTTP {status})" if status else kind
        what += f" after {self._tries} tries" if self._tries > 1 else ""
        message = " ".join(body.message.split())[:_MESSAGE_CHARACTERS]
        return ApiError(
            f"{where}: {what}: {message}; {ADVICE[kind]}",
            kind=kind,
            error=body,
            status=status,
            attempts=self._tries,
            retry_after=retry_after,
            timing=self.timing(kind),
        )

    def timing(self, error_kind: ErrorKind | None = None) -> RequestTiming:
        """What happened so far, as the timing of this request."""
        answer, usage = self._answer, self._answer.usage
        return RequestTiming(
            request_id=self.call.request_id,
            intended_s=self.call.intended_s,
            actual_s=self.sent_s,
            ttfb_s=self._ttfb_s,
            ttft_s=answer.chunk_times_s[0] if answer.chunk_times_s else None,
            e2e_s=answer.ended_s if error_kind is None else None,
            chunk_times_s=tuple(answer.chunk_times_s),
            chunk_tokens=answer.known_chunk_tokens,
            prompt_tokens=usage.prompt_tokens if usage else None,
            completion_tokens=usage.completion_tokens if usage else None,
            cached_tokens=usage.cached_tokens if usage else None,
            status=self._status,
            finish_reason=answer.finish_reason,
            error_kind=error_kind,
        )

    @property
    def sent_s(self) -> float:
        """When the bytes left, on `time.perf_counter`; when the try began, as long as they have not."""
        return self._started_s if self._actual_s is None else self._actual_s

    def _now_s(self) -> float:
        return time.perf_counter() - self.sent_s

    def _take_whole(self, body: bytes, at_s: float) -> None:
        try:
            whole = self._whole(body)
        except ValidationError as error:
            self._raise_unreadable(body.decode("utf-8", errors="replace"), error)
        if not whole.choices:
            raise self.error("bad_response", "an answer without a choice")
        choice = whole.choices[0]
        answer = self._answer
        answer.take_text(choice.delta, choice.logprobs)
        answer.model, answer.usage = whole.model, whole.usage
        answer.finish_reason, answer.ended_s = choice.finish_reason, at_s

    def _whole(self, body: bytes) -> ChatChunk:
        if self.call.route == "completions":
            return TextAnswer.model_validate_json(body).as_chat()
        whole = ChatResponse.model_validate_json(body)
        first = whole.choices[0]
        choice = ChatChunkChoice(
            delta=first.message, finish_reason=first.finish_reason, logprobs=first.logprobs
        )
        return ChatChunk(model=whole.model, choices=[choice], usage=whole.usage)

    def _chunk(self, payload: str) -> ChatChunk:
        if self.call.route == "completions":
            return TextAnswer.model_validate_json(payload).as_chat()
        return ChatChunk.model_validate_json(payload)

    async def _read_stream(self, response: httpx.Response) -> None:
        decoder, pieces, start = SseDecoder(), response.aiter_bytes(), b""
        try:
            async for piece in pieces:
                at_s = self._now_s()
                start = start or piece
                self._take_events(decoder.feed(piece), at_s)
                if self._answer.done:
                    await _drain(pieces)
                    return
            self._take_events(decoder.finish(), self._now_s())
        except ValueError as error:
            raise self.error("bad_response", _words(error)) from error
        self._require_whole(start)

    def _replay_stream(self, received: Received) -> None:
        decoder = SseDecoder()
        at_s = received.began_s
        try:
            for at_s, piece in received.pieces:
                self._take_events(decoder.feed(piece), at_s - self.sent_s)
                if self._answer.done:
                    return
            if received.fault is not None:
                raise self.broken(received.fault)
            self._take_events(decoder.finish(), at_s - self.sent_s)
        except ValueError as error:
            raise self.error("bad_response", _words(error)) from error
        self._require_whole(received.pieces[0][1] if received.pieces else b"")

    def _require_whole(self, start: bytes) -> None:
        if self._answer.is_whole:
            return
        if self._answer.chunk_times_s:
            raise self.error("stream_broken", "the stream ended in the middle of the answer")
        shown = start.decode("utf-8", errors="replace")
        raise self.error("bad_response", f"no answer in a stream that starts with {shown[:80]!r}")

    def _take_events(self, payloads: list[str], at_s: float) -> None:
        for payload in payloads:
            if payload.strip() == DONE:
                self._answer.done = True
                return
            try:
                chunk = self._chunk(payload)
            except ValidationError as error:
                self._raise_unreadable(payload, error)
            self._answer.take_chunk(chunk, at_s)

    def _raise_unreadable(self, text: str, error: ValidationError) -> NoReturn:
        # A server that fails after its 200 says so in the place of a chunk, with the status as `code`.
        found = parse_error(_json(text))
        if found is None:
            raise self.error("bad_response", f"not a {self.call.route} answer: {text[:80]!r}") from error
        if self._answer.chunk_times_s:
            raise self.error("stream_broken", found) from error
        status = found.code if isinstance(found.code, int) and 400 <= found.code < 600 else 500
        raise self.error(_kind(status), found, status=status) from error


async def _drain(pieces: AsyncIterator[bytes]) -> None:
    # Only a response read to its end gives its connection back; the answer is whole, whatever happens here.
    with suppress(TimeoutError, httpx.TransportError):
        async with asyncio.timeout(_DRAIN_LIMIT_S):
            async for _ in pieces:
                pass


def _kind(status: int) -> ErrorKind:
    kinds: dict[int, ErrorKind] = {
        401: "auth",
        403: "auth",
        404: "not_found",
        408: "timeout",
        409: "conflict",
        429: "rate_limited",
    }
    if status >= 500:
        return "server_error"
    return kinds.get(status, "bad_request" if status >= 400 else "bad_response")


def _retry_after_s(headers: httpx.Headers) -> float | None:
    # RFC 9110: seconds, or a date, which we compare with the server's own clock where it gives it.
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        at = parsedate_to_datetime(value)
        now = parsedate_to_datetime(headers["date"]) if "date" in headers else datetime.now(UTC)
        return max(0.0, (at - now).total_seconds())
    except (ValueError, TypeError):
        return None


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__
