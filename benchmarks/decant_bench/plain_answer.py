"""An ordinary streamed answer, read without ceremony.

A load client reads tens of events per request, and validating each of them strictly costs more than all else
it does. What has the usual shape to the letter is read here; for anything else there is no answer, and
`decant.exchange.Attempt` reads it strictly, with the words for what is wrong with it.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, cast

from decant.arrival import Received
from decant.exchange import Call, Completion
from decant.timing import RequestTiming
from decant.wire import Usage

_DONE = b"[DONE]"
_DATA = b"data: "
_EVENT_END = b"\n\n"
# An escaped half of a character is text to one JSON reader and an error to another.
_SURROGATES = (b"\\ud", b"\\uD")
_TEXT_OR_NONE = (str, type(None))
_DELTA_TEXTS = ("content", "reasoning_content", "reasoning", "role")


class _Unusual(Exception):
    """The answer is not of the usual shape."""


class _Reading:
    """What came of an answer so far."""

    __slots__ = ("content", "ended_s", "finish_reason", "model", "reasoning", "times_s", "usage")

    def __init__(self) -> None:
        self.model: str | None = None
        self.finish_reason: str | None = None
        self.usage: dict[str, Any] | None = None
        self.ended_s: float | None = None
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.times_s: list[float] = []

    def take(self, event: Any, at_s: float, *, is_chat: bool) -> None:
        _require(type(event) is dict)
        self.model = _text(event.get("model")) or self.model
        _require(type(event.get("id", "")) is str)
        usage = event.get("usage")
        if usage is not None:
            _require(type(usage) is dict and type(usage.get("prompt_tokens")) is int)
            self.usage = cast(dict[str, Any], usage)
        choices = event.get("choices")
        _require(type(choices) is list)
        for choice in cast(list[Any], choices):
            _require(type(choice) is dict and type(choice.get("index", 0)) is int)
            _require(choice.get("logprobs") is None)
            self._take_choice(choice, at_s, is_chat=is_chat)

    def _take_choice(self, choice: dict[str, Any], at_s: float, *, is_chat: bool) -> None:
        content, reasoning = _delta(choice.get("delta", {})) if is_chat else (_text(choice.get("text")), None)
        if content or reasoning:
            self.content.append(content or "")
            self.reasoning.append(reasoning or "")
            self.times_s.append(at_s)
            self.ended_s = at_s
        finish_reason = _text(choice.get("finish_reason"))
        if finish_reason is not None:
            self.finish_reason = finish_reason
            # An empty answer has no last content: its end is the event that says so.
            self.ended_s = at_s if self.ended_s is None else self.ended_s


def plain_completion(call: Call, received: Received, *, sent_s: float) -> Completion | None:
    """The answer in a stream of the usual shape; None for all else, errors among it."""
    if received.status != 200 or received.fault is not None:
        return None
    if not received.headers.get("content-type", "").startswith("text/event-stream"):
        return None
    reading, is_done = _Reading(), False
    try:
        for at_s, payload in _payloads(received.pieces):
            if payload == _DONE:
                is_done = True
                break
            reading.take(json.loads(payload), at_s - sent_s, is_chat=call.route == "chat")
        usage = None if reading.usage is None else Usage.model_validate(reading.usage, strict=True)
    except (_Unusual, ValueError, RecursionError):  # JSON's and pydantic's errors are ValueErrors
        return None
    if not is_done and reading.finish_reason is None:
        return None
    return _completion(call, received, reading, usage, sent_s)


def _payloads(pieces: Sequence[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """The data of each event with when its last byte came; _Unusual for more than one line of data each."""
    rest = b""
    for at_s, piece in pieces:
        whole = rest + piece if rest else piece
        *events, rest = whole.split(_EVENT_END)
        for event in events:
            if not event.startswith(_DATA) or b"\n" in event or b"\r" in event:
                raise _Unusual
            if _SURROGATES[0] in event or _SURROGATES[1] in event:
                raise _Unusual
            yield at_s, event[len(_DATA) :]
    if rest:
        raise _Unusual


def _delta(delta: Any) -> tuple[str | None, str | None]:
    _require(type(delta) is dict and not delta.get("tool_calls"))
    for name in _DELTA_TEXTS:
        _require(type(delta.get(name)) in _TEXT_OR_NONE)
    return delta.get("content"), delta.get("reasoning_content") or delta.get("reasoning")


def _text(value: Any) -> str | None:
    _require(type(value) in _TEXT_OR_NONE)
    return value


def _require(is_usual: bool) -> None:
    if not is_usual:
        raise _Unusual


def _completion(
    call: Call, received: Received, reading: _Reading, usage: Usage | None, sent_s: float
) -> Completion:
    return Completion(
        text="".join(reading.content),
        reasoning="".join(reading.reasoning) or None,
        finish_reason=reading.finish_reason,
        usage=usage,
        logprobs=None,
        model=reading.model,
        headers=dict(received.headers),
        timing=RequestTiming(
            request_id=call.request_id,
            intended_s=call.intended_s,
            actual_s=sent_s,
            ttfb_s=received.began_s - sent_s,
            ttft_s=reading.times_s[0] if reading.times_s else None,
            e2e_s=reading.ended_s,
            chunk_times_s=tuple(reading.times_s),
            prompt_tokens=usage.prompt_tokens if usage else None,
            completion_tokens=usage.completion_tokens if usage else None,
            cached_tokens=usage.cached_tokens if usage else None,
            status=received.status,
            finish_reason=reading.finish_reason,
        ),
    )
