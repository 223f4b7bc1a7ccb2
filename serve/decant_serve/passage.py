"""A stream of server-sent events on its way through: passed on as bytes, read only as timing needs."""

import json
import re
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Mapping
from typing import Any, cast

from decant.wire import sse_event
from decant_serve.openai_errors import ApiFault

TIMING_KEY = "decant_timing"

_MIXED_EVENT_END = re.compile(rb"(?<=\n\n)|(?<=\r\n\r\n)")
# No engine says so much at once; without a bound, one that never ends an event fills the memory.
_EVENT_LIMIT_BYTES = 16 * 2**20
# Inside a JSON string the quotes would be escaped, so these cannot match the model's own words.
_CONTENT = re.compile(
    rb'"(?:content|reasoning_content|reasoning|text|arguments)":\s*"(?!")|"tool_calls":\s*\[\s*\{'
)
_FINISH = re.compile(rb'"finish_reason":\s*"(\w+)"')
_NUMBERS = re.compile(rb'"(?:usage|timings|metrics)":\s*\{')
_ERROR = re.compile(rb'\s*data:\s*\{"error":')
_DONE = re.compile(rb"\s*data:\s*\[DONE\]")


def split_events(text: bytes) -> tuple[list[bytes], bytes]:
    """The whole events in some bytes of a stream, and what is left of the next one."""
    if b"\r" in text:
        *events, rest = _MIXED_EVENT_END.split(text)
        return events, rest
    # The same for line feeds alone, at a twentieth of the time.
    *bodies, rest = text.split(b"\n\n")
    return [body + b"\n\n" for body in bodies], rest


async def whole_events(received: AsyncIterable[bytes]) -> AsyncGenerator[bytes]:
    """The events of a stream, one at a time; what ends within one is left out."""
    rest = b""
    async for part in received:
        events, rest = split_events(rest + part)
        for event in events:
            yield event


Timing = Callable[[], Mapping[str, Any]]


class Passage:
    """Takes what the engine sends, read by read, and gives what the client gets.

    Events are handed on whole and unchanged; the usage event is left out where the client did not ask for it.
    Times are those given to `take`, one per event with content. With `timing` the usage event carries that
    object too, or an event of its own before the end does.
    """

    def __init__(self, *, wants_usage: bool, timing: Timing | None = None) -> None:
        self._wants_usage = wants_usage
        self._timing = timing
        self._rest = b""
        self.content_times_s: list[float] = []
        self.finish_reason: str | None = None
        self.usage: Mapping[str, Any] | None = None
        self.engine_numbers: Mapping[str, Any] | None = None
        self.is_done = False
        self.has_error = False

    def take(self, received: bytes, at_s: float) -> bytes:
        """What to pass on after one read; empty when it completes no event."""
        events, self._rest = split_events(self._rest + received if self._rest else received)
        if len(self._rest) > _EVENT_LIMIT_BYTES:
            message = f"the engine sent more than {_EVENT_LIMIT_BYTES} bytes without an end to its event"
            raise ApiFault(502, message, type="server_error", code="stream_broken")
        return b"".join([self._passed(event, at_s) for event in events])

    def take_whole(self, body: bytes) -> bytes:
        """Reads the same off an answer that is not streamed, and gives what the client gets."""
        finish = _FINISH.search(body)
        self.finish_reason = finish[1].decode() if finish else None
        self._read_numbers(body)
        return _with_timing(body, self._timing()) if self._timing else body

    def _passed(self, event: bytes, at_s: float) -> bytes:
        if _CONTENT.search(event):
            self.content_times_s.append(at_s)
        finish = _FINISH.search(event)
        if finish:
            self.finish_reason = finish[1].decode()
        if _NUMBERS.search(event):
            return self._with_numbers(event)
        if _DONE.match(event):
            self.is_done = True
            return self._late_timing() + event
        self.has_error = self.has_error or _ERROR.match(event) is not None
        return event

    def _with_numbers(self, event: bytes) -> bytes:
        body = self._read_numbers(event.partition(b":")[2])
        if body.get("choices") or "usage" not in body:
            return event
        if self._timing is not None:
            timing, self._timing = self._timing, None
            return _with_timing(event, timing())
        return event if self._wants_usage else b""

    def _late_timing(self) -> bytes:
        if self._timing is None:
            return b""
        timing, self._timing = self._timing, None
        return sse_event({"choices": [], TIMING_KEY: timing()})

    def _read_numbers(self, text: bytes) -> dict[str, Any]:
        try:
            parsed = json.loads(text)
        except ValueError:
            parsed = None
        body = cast("dict[str, Any]", parsed) if isinstance(parsed, dict) else {}
        self.usage = body.get("usage") or self.usage
        # llama.cpp and our own engines say `timings`, vLLM says `metrics`.
        self.engine_numbers = body.get("timings") or body.get("metrics") or self.engine_numbers
        return body


def _with_timing(text: bytes, timing: Mapping[str, Any]) -> bytes:
    """The same JSON object with one more key at its end; nothing else of it is touched."""
    head, brace, tail = text.rpartition(b"}")
    return head + b',"' + TIMING_KEY.encode() + b'":' + json.dumps(timing).encode() + brace + tail
