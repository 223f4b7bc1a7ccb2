"""A stream of server-sent events on its way through: passed on as bytes, read only as timing needs."""

import json
import re
from collections.abc import Mapping
from typing import Any, cast

_EVENT_END = re.compile(rb"(?<=\n\n)|(?<=\r\n\r\n)")
# Inside a JSON string the quotes would be escaped, so these cannot match the model's own words.
_CONTENT = re.compile(rb'"(?:content|reasoning_content|reasoning|text|arguments)":\s*"(?!")')
_FINISH = re.compile(rb'"finish_reason":\s*"(\w+)"')
_NUMBERS = re.compile(rb'"(?:usage|timings)":\s*\{')
_ERROR = re.compile(rb'data:\s*\{"error":')
_DONE = re.compile(rb"data:\s*\[DONE\]")


class Passage:
    """Takes what the engine sends, read by read, and gives what the client gets.

    Events are handed on whole and unchanged; the usage event is left out where the client did not ask for it.
    Times are those given to `take`, one per event with content.
    """

    def __init__(self, *, wants_usage: bool) -> None:
        self._wants_usage = wants_usage
        self._rest = b""
        self.content_times_s: list[float] = []
        self.finish_reason: str | None = None
        self.usage: Mapping[str, Any] | None = None
        self.engine_numbers: Mapping[str, Any] | None = None
        self.is_done = False
        self.has_error = False

    def take(self, received: bytes, at_s: float) -> bytes:
        """What to pass on after one read; empty when it completes no event."""
        *events, self._rest = _EVENT_END.split(self._rest + received)
        return b"".join(event for event in events if self._passes(event, at_s))

    def read_whole(self, body: bytes) -> None:
        """Reads the same off an answer that is not streamed."""
        finish = _FINISH.search(body)
        self.finish_reason = finish[1].decode() if finish else None
        self._read_numbers(b"data:" + body)

    def _passes(self, event: bytes, at_s: float) -> bool:
        if _CONTENT.search(event):
            self.content_times_s.append(at_s)
        finish = _FINISH.search(event)
        if finish:
            self.finish_reason = finish[1].decode()
        if _NUMBERS.search(event):
            return self._read_numbers(event)
        self.is_done = self.is_done or _DONE.match(event) is not None
        self.has_error = self.has_error or _ERROR.match(event) is not None
        return True

    def _read_numbers(self, event: bytes) -> bool:
        try:
            parsed = json.loads(event.partition(b":")[2])
        except ValueError:
            parsed = None
        if not isinstance(parsed, dict):
            return True
        body = cast("dict[str, Any]", parsed)
        self.usage = body.get("usage") or self.usage
        self.engine_numbers = body.get("timings") or self.engine_numbers
        return self._wants_usage or bool(body.get("choices"))
