"""A chat answer in the words of the Responses API: as one object, or as its events."""

import json
import time
import uuid
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from decant.wire import DONE, ChatChunk, ChatDelta, ChatResponse, SseDecoder, Usage, parse_error, sse_event
from decant_serve.openai_errors import ApiFault
from decant_serve.passage import TIMING_KEY
from decant_serve.responses_items import Item, MessageItem, ReasoningItem, ToolCallItem

_INCOMPLETE: Mapping[str, str] = {"length": "max_output_tokens", "content_filter": "content_filter"}
_ECHOED: Mapping[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "metadata": {},
    "model": None,
    "parallel_tool_calls": True,
    "reasoning": {"effort": None, "summary": None},
    "temperature": None,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": None,
    "user": None,
}


class ResponsesVoice:
    """Writes one response; `body` is the request that it answers."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        echoed = {
            name: default if body.get(name) is None else body[name] for name, default in _ECHOED.items()
        }
        self._response: dict[str, Any] = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "background": False,
            "error": None,
            "incomplete_details": None,
            "output": [],
            "previous_response_id": None,
            "service_tier": "default",
            "store": False,
            "truncation": "disabled",
            "usage": None,
            **echoed,
        }
        self._decoder = SseDecoder()
        self._items: list[Item] = []
        self._sent = 0
        self._finish: str | None = None

    def whole(self, body: bytes) -> bytes:
        """The response object; ApiFault 502 for an engine's answer that is none."""
        try:
            answer = ChatResponse.model_validate_json(body)
        except ValidationError:
            raise ApiFault(502, "the engine's answer is no chat answer", type="server_error") from None
        choice = answer.choices[0]
        self._finish = choice.finish_reason
        self._take(choice.message)
        if not self._items:
            self._items.append(MessageItem(0))
        extra = answer.model_extra or {}
        return self._ended(answer.usage, extra.get(TIMING_KEY)).encode()

    def stream(self, passed: bytes) -> bytes:
        """The events that say what these chat events said."""
        return b"".join([self._heard(payload) for payload in self._decoder.feed(passed)])

    def error_event(self, fault: ApiFault) -> bytes:
        """An `error` event, and the response as failed."""
        error = {"code": fault.code, "message": fault.message, "param": fault.param}
        self._response["status"] = "failed"
        # The API's own list of codes has one for everything that is the server's fault.
        self._response["error"] = {"code": "server_error", "message": fault.message}
        begun = self._begun()
        failed = self._event("error", **error)
        return begun + failed + self._event("response.failed", response=self._snapshot())

    def _heard(self, payload: str) -> bytes:
        if self._response["status"] == "failed":
            return b""
        if payload.strip() == DONE:
            return self._completed()
        try:
            chunk = ChatChunk.model_validate_json(payload)
        except ValidationError:
            return self.error_event(_engine_fault(payload))
        self._keep_numbers(chunk)
        events = [self._begun()]
        for choice in chunk.choices:
            self._finish = choice.finish_reason or self._finish
            events += [self._event(kind, **fields) for kind, fields in self._take(choice.delta)]
        return b"".join(events)

    def _keep_numbers(self, chunk: ChatChunk) -> None:
        if chunk.usage is not None:
            self._response["usage"] = _usage(chunk.usage)
        timing = (chunk.model_extra or {}).get(TIMING_KEY)
        if timing is not None:
            self._response[TIMING_KEY] = timing

    def _take(self, delta: ChatDelta) -> list[tuple[str, dict[str, Any]]]:
        """Adds a delta to the items; what there is to say of it."""
        said: list[tuple[str, dict[str, Any]]] = []
        if delta.reasoning_text:
            said += self._open(ReasoningItem)
            said.append(self._items[-1].add(delta.reasoning_text))
        if delta.content:
            said += self._open(MessageItem)
            said.append(self._items[-1].add(delta.content))
        for call in delta.tool_calls or []:
            function: Mapping[str, Any] = call.get("function") or {}
            if function.get("name"):
                said += self._close()
                item = ToolCallItem(len(self._items), call.get("id"), function["name"])
                self._items.append(item)
                said += item.opening()
            if function.get("arguments"):
                said.append(self._items[-1].add(function["arguments"]))
        return said

    def _open(self, kind: type[MessageItem] | type[ReasoningItem]) -> list[tuple[str, dict[str, Any]]]:
        if self._items and isinstance(self._items[-1], kind):
            return []
        closed = self._close()
        item = kind(len(self._items))
        self._items.append(item)
        return [*closed, *item.opening()]

    def _close(self) -> list[tuple[str, dict[str, Any]]]:
        return self._items[-1].closing() if self._items else []

    def _begun(self) -> bytes:
        if self._sent:
            return b""
        created = self._event("response.created", response=self._snapshot())
        return created + self._event("response.in_progress", response=self._snapshot())

    def _completed(self) -> bytes:
        begun = self._begun()
        opened = [] if self._items else self._open(MessageItem)
        events = [self._event(kind, **fields) for kind, fields in [*opened, *self._close()]]
        self._set_end()
        kind = f"response.{self._response['status']}"
        return begun + b"".join(events) + self._event(kind, response=self._snapshot())

    def _ended(self, usage: Usage | None, timing: Any) -> str:
        self._set_end()
        self._response["usage"] = _usage(usage) if usage else None
        if timing is not None:
            self._response[TIMING_KEY] = timing
        return json.dumps(self._snapshot())

    def _set_end(self) -> None:
        reason = _INCOMPLETE.get(self._finish or "")
        self._response["status"] = "incomplete" if reason else "completed"
        self._response["incomplete_details"] = {"reason": reason} if reason else None

    def _snapshot(self) -> dict[str, Any]:
        status = "in_progress" if self._response["status"] == "in_progress" else "completed"
        return {**self._response, "output": [item.to_wire(status) for item in self._items]}

    def _event(self, kind: str, **fields: Any) -> bytes:
        event = {"type": kind, "sequence_number": self._sent, **fields}
        self._sent += 1
        return f"event: {kind}\n".encode() + sse_event(event)


def _engine_fault(payload: str) -> ApiFault:
    """What an engine says in the place of a chunk."""
    try:
        error = parse_error(json.loads(payload))
    except ValueError:
        error = None
    message = error.message if error else "the engine sent something else than a chat chunk"
    return ApiFault(500, message, type="server_error", code="engine_error")


def _usage(usage: Usage) -> dict[str, Any]:
    total = usage.prompt_tokens + usage.completion_tokens
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens or 0, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": total,
    }
