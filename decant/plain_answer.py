"""An ordinary streamed answer, read without ceremony.

A load client reads tens of events per request, and validating each of them strictly costs more than all else
it does. What has the usual shape to the letter is read here; for anything else there is no answer, and
`decant.exchange.Attempt` reads it strictly, with the words for what is wrong with it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
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

    def take_text(self, content: str, reasoning: str, at_s: float) -> None:
        self.content.append(content)
        self.reasoning.append(reasoning)
        self.times_s.append(at_s)
        self.ended_s = at_s

    def _take_choice(self, choice: dict[str, Any], at_s: float, *, is_chat: bool) -> None:
        content, reasoning = _delta(choice.get("delta", {})) if is_chat else (_text(choice.get("text")), None)
        if content or reasoning:
            self.take_text(content or "", reasoning or "", at_s)
        finish_reason = _text(choice.get("finish_reason"))
        if finish_reason is not None:
            self.finish_reason = finish_reason
            # An empty answer has no last content: its end is the event that says so.
            self.ended_s = at_s if self.ended_s is None else self.ended_s


@dataclass(frozen=True, slots=True)
class _Mould:
    """What stands before and after the text in an event: the next ones mostly differ in the text alone.

    The text between must be one JSON string without escapes, so that the event reads as the first one did.
    """

    before: bytes
    after: bytes
    around: int

    def text_in(self, piece: bytes) -> str | None:
        """The text of a piece that is one event of this mould; None when it is anything else."""
        if len(piece) <= self.around or not piece.endswith(self.after) or not piece.startswith(self.before):
            return None
        text = piece[len(self.before) : -len(self.after)]
        if b'"' in text or b"\\" in text:
            return None
        found = text.decode()
        return found if found.isprintable() else None


def _mould_of(payload: bytes, event: dict[str, Any], *, is_chat: bool) -> _Mould | None:
    """The mould of an event that holds a text and nothing else to be read; None for others."""
    choices = event["choices"]
    if len(choices) != 1 or choices[0].get("finish_reason") is not None or event.get("usage") is not None:
        return None
    content, reasoning = _delta(choices[0].get("delta", {})) if is_chat else (choices[0].get("text"), None)
    key = b'"content":' if is_chat else b'"text":'
    if not content or reasoning or payload.count(key) != 1:
        return None
    before, _, rest = payload.partition(key)
    begin = len(before) + len(key) + (2 if rest.startswith(b' "') else 1)
    end = payload.find(b'"', begin)
    if payload[begin:end] != content.encode():
        return None
    before, after = _DATA + payload[:begin], payload[end:] + _EVENT_END
    return _Mould(before, after, len(before) + len(after))


def plain_completion(call: Call, received: Received, *, sent_s: float) -> Completion | None:
    """The answer in a stream of the usual shape; None for all else, errors among it."""
    if received.status != 200 or received.fault is not None:
        return None
    if not received.headers.get("content-type", "").startswith("text/event-stream"):
        return None
    reading = _Reading()
    try:
        is_done = _read(reading, received.pieces, sent_s, is_chat=call.route == "chat")
        usage = None if reading.usage is None else Usage.model_validate(reading.usage, strict=True)
    except (_Unusual, ValueError, RecursionError):  # JSON's and pydantic's errors are ValueErrors
        return None
    if not is_done and reading.finish_reason is None:
        return None
    return _completion(call, received, reading, usage, sent_s)


def _read(reading: _Reading, pieces: Sequence[tuple[float, bytes]], sent_s: float, *, is_chat: bool) -> bool:
    """Reads the events; whether the stream said that it is done. _Unusual, ValueError for another shape."""
    mould: _Mould | None = None
    rest = b""
    for at_s, piece in pieces:
        if mould is not None and not rest and (text := mould.text_in(piece)) is not None:
            reading.take_text(text, "", at_s - sent_s)
            continue
        *events, rest = (rest + piece).split(_EVENT_END)
        for event in events:
            payload = _payload(event)
            if payload == _DONE:
                return True
            found = json.loads(payload)
            reading.take(found, at_s - sent_s, is_chat=is_chat)
            mould = _mould_of(payload, found, is_chat=is_chat) or mould
    if rest:
        raise _Unusual
    return False


def _payload(event: bytes) -> bytes:
    """An event's data; _Unusual for more than one line of it, or another line end."""
    if not event.startswith(_DATA) or b"\n" in event or b"\r" in event:
        raise _Unusual
    if _SURROGATES[0] in event or _SURROGATES[1] in event:
        raise _Unusual
    return event[len(_DATA) :]


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
