"""The OpenAI subset, once: requests, responses, chunks, the error object, SSE, request keys."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field

DONE = "[DONE]"


class _Sent(BaseModel):
    """What a client sends: validated strictly where we know it, and what we do not know is kept."""

    model_config = ConfigDict(extra="allow", frozen=True)


class _Received(BaseModel):
    """What a server sends: servers differ, so unknown fields are kept, known ones may be absent or null."""

    model_config = ConfigDict(extra="allow", frozen=True)


class Message(_Sent):
    """One chat message; `content` may be a list of parts, and null when there are tool calls."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None

    def text(self) -> str:
        """The content as one string; ValueError for parts that are not text."""
        if not isinstance(self.content, list):
            return self.content or ""
        for part in self.content:
            if part.get("type") != "text" or not isinstance(part.get("text"), str):
                raise ValueError(f"a content part of type {part.get('type')!r}; only text is supported")
        return "".join(part["text"] for part in self.content)


class StreamOptions(_Sent):
    """What a stream carries besides deltas."""

    include_usage: bool = False


class _Sampling(_Sent):
    model: str
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    n: int | None = Field(default=None, ge=1)
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings, none of them empty."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(text for text in given if text)

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage


class ChatRequest(_Sampling):
    """The body of POST /v1/chat/completions."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None

    @property
    def token_limit(self) -> int | None:
        """The most tokens to generate: the newer name wins over `max_tokens`."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


class CompletionRequest(_Sampling):
    """The body of POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int | None = Field(default=None, ge=0)
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: bool = False
    suffix: str | None = None
    best_of: int | None = None

    @property
    def token_limit(self) -> int | None:
        """The most tokens to generate."""
        return self.max_tokens


class PromptTokensDetails(_Received):
    """The part of the prompt that the server did not have to compute."""

    cached_tokens: int | None = None


class Usage(_Received):
    """The tokens of one request."""

    prompt_tokens: int
    completion_tokens: int = 0
    total_tokens: int | None = None
    prompt_tokens_details: PromptTokensDetails | None = None

    @property
    def cached_tokens(self) -> int | None:
        """Prompt tokens that came from a cache; None when the server does not say."""
        return None if self.prompt_tokens_details is None else self.prompt_tokens_details.cached_tokens


class TokenLogprob(_Received):
    """One generated token with its log-probability (natural logarithm)."""

    token: str
    logprob: float
    top_logprobs: list[dict[str, Any]] | None = None


class ChoiceLogprobs(_Received):
    """The log-probabilities of one chat choice or chunk."""

    content: list[TokenLogprob] | None = None


class ChatDelta(_Received):
    """What a chat chunk adds; `reasoning_content` and `reasoning` are two names for the same thing."""

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[dict[str, Any]] | None = None

    @property
    def reasoning_text(self) -> str:
        """The reasoning, under either name."""
        return self.reasoning_content or self.reasoning or ""

    @property
    def is_content(self) -> bool:
        """Whether it carries anything of the answer: content, reasoning or a tool call."""
        return bool(self.content or self.reasoning_text or self.tool_calls)


class ChatChunkChoice(_Received):
    """One choice of a chat chunk."""

    index: int = 0
    delta: ChatDelta = ChatDelta()
    finish_reason: str | None = None
    logprobs: ChoiceLogprobs | None = None


class ChatChunk(_Received):
    """One event of a chat stream; the last one may carry usage and no choice."""

    id: str = ""
    model: str | None = None
    choices: list[ChatChunkChoice]
    usage: Usage | None = None


class ChatChoice(_Received):
    """One answer of a chat response."""

    index: int = 0
    message: ChatDelta
    finish_reason: str | None = None
    logprobs: ChoiceLogprobs | None = None


class ChatResponse(_Received):
    """The body of a chat answer that was not streamed."""

    id: str = ""
    model: str | None = None
    choices: list[ChatChoice] = Field(min_length=1)
    usage: Usage | None = None


class ErrorBody(BaseModel):
    """What went wrong, in OpenAI's words."""

    model_config = ConfigDict(extra="allow", frozen=True)

    message: str
    type: str | None = None
    param: str | None = None
    code: str | int | None = None


ErrorType = Literal[
    "invalid_request_error",
    "authentication_error",
    "not_found_error",
    "rate_limit_error",
    "server_error",
    "timeout_error",
]


def error_object(
    message: str,
    type: ErrorType,  # noqa: A002 - the wire's own word
    param: str | None = None,
    code: str | None = None,
) -> dict[str, dict[str, str | None]]:
    """The JSON body of an error answer, with the four fields that OpenAI's clients read."""
    return {"error": {"message": message, "type": type, "param": param, "code": code}}


def parse_error(body: Any) -> ErrorBody | None:
    """The error in a decoded body, in any of the shapes that servers use; None when it holds none.

    Shapes: `{"error": {...}}`, `{"error": "text"}`, `{"object": "error", "message": ...}`, `{"detail": ...}`.
    """
    if not isinstance(body, Mapping):
        return None
    answer = cast(Mapping[str, Any], body)
    found: Any = answer.get("error") or answer.get("detail")
    if not found and answer.get("object") == "error":
        found = answer
    if not found:
        return None
    if not isinstance(found, Mapping):
        return ErrorBody(message=found if isinstance(found, str) else json.dumps(found))
    fields = cast(Mapping[str, Any], found)
    code, param, kind = fields.get("code"), fields.get("param"), fields.get("type")
    return ErrorBody(
        message=str(fields.get("message") or json.dumps(fields)),
        type=None if kind is None else str(kind),
        param=None if param is None else str(param),
        code=code if code is None or isinstance(code, int) else str(code),
    )


def sse_event(payload: Mapping[str, Any] | str) -> bytes:
    """One server-sent event: a JSON object, or a one-line text such as `DONE`."""
    text = (
        payload
        if isinstance(payload, str)
        else json.dumps(payload, ensure_ascii=False, separators=(",", ":"))
    )
    assert not {"\n", "\r"} & set(text), "an event of one line"
    return b"data: " + text.encode() + b"\n\n"


def canonical_json(obj: Any) -> bytes:
    """The same bytes for equal values: sorted keys, no spaces, UTF-8, integral floats as integers.

    ValueError for NaN and infinities, TypeError for what JSON cannot hold.
    """
    # JSON text may hold lone surrogates ("\ud800"); they must not make a row impossible to key.
    return _CANONICAL.encode(_canonical(obj)).encode("utf-8", errors="surrogatepass")


_CANONICAL = json.JSONEncoder(sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
# Looked up before anything else: nearly every value of a request is one of these.
_PLAIN = frozenset({str, int, bool, type(None)})


def _canonical(value: Any) -> Any:
    if type(value) in _PLAIN:
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {str(key): _canonical(item) for key, item in cast(Mapping[Any, Any], value).items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in cast(Sequence[Any], value)]
    return value


# They say how an answer travels and who asked, and never change what it is.
TRANSPORT_FIELDS = frozenset(
    {
        "model",
        "stream",
        "stream_options",
        "user",
        "metadata",
        "store",
        "service_tier",
        "priority",
        "request_id",
    }
)


def request_key(
    *, model: str, revision: str | None, request: Mapping[str, Any], sample_index: int = 0
) -> str:
    """The hex SHA-256 that names one sample of one request.

    It covers the model and its revision, the sample index, and every field of the request that may change the
    answer: fields we do not know count, null fields count as absent, transport fields do not count.
    """
    asked = {
        name: value for name, value in request.items() if name not in TRANSPORT_FIELDS and value is not None
    }
    identity = {"model": model, "revision": revision, "request": asked, "sample": sample_index}
    return hashlib.sha256(canonical_json(identity)).hexdigest()


class SseDecoder:
    """Turns the bytes of a `text/event-stream`, cut anywhere, into the data of its events.

    Follows the WHATWG standard: LF, CR and CRLF end lines, data lines of one event are joined by LF, comments
    and other fields are dropped. ValueError when an event outgrows `max_event_bytes`.
    """

    def __init__(self, *, max_event_bytes: int = 16 * 2**20) -> None:
        self._max_event_bytes = max_event_bytes
        self._line = bytearray()
        self._data: list[str] = []
        self._data_bytes = 0
        self._after_cr = False
        self._at_start = True

    def feed(self, chunk: bytes) -> list[str]:
        """The data of the events that this read completes."""
        events: list[str] = []
        if self._after_cr and chunk[:1] == b"\n":
            chunk = chunk[1:]
        if chunk:
            self._after_cr = chunk.endswith(b"\r")
        *lines, rest = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for line in lines:
            self._line += line
            self._take_line(events)
        self._line += rest
        if len(self._line) + self._data_bytes > self._max_event_bytes:
            raise ValueError(f"an event of more than {self._max_event_bytes} bytes")
        return events

    def finish(self) -> list[str]:
        """The data of a last event that the stream ended without its blank line."""
        events: list[str] = []
        self._take_line(events)
        self._take_line(events)
        return events

    def _take_line(self, events: list[str]) -> None:
        line = self._line.decode("utf-8", errors="replace")
        self._line.clear()
        if self._at_start:
            line = line.removeprefix("\ufeff")
            self._at_start = False
        if not line:
            if self._data:
                events.append("\n".join(self._data))
            self._data = []
            self._data_bytes = 0
            return
        name, _, value = line.partition(":")
        if name == "data":
            self._data.append(value.removeprefix(" "))
            self._data_bytes += len(value)
