"""The OpenAI objects that our own engines answer with: chunks, whole answers, usage, log probabilities."""

import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from decant.wire import DONE, sse_event
from decant_serve.calls import Route

_OBJECTS: Mapping[Route, tuple[str, str, str]] = {
    "chat": ("chatcmpl-", "chat.completion", "chat.completion.chunk"),
    "completions": ("cmpl-", "text_completion", "text_completion"),
}


@dataclass(frozen=True, slots=True)
class ScoredToken:
    """One token taken, as text, with its natural-log probability and the likeliest alternatives."""

    text: str
    logprob: float
    top: tuple["ScoredToken", ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """The tokens of one request, all its choices together."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    def to_wire(self) -> dict[str, Any]:
        """OpenAI's usage object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


@dataclass(frozen=True, slots=True)
class EngineTimings:
    """An engine's account of one request: its queue, then to the first token, then to the last."""

    queue_s: float
    prefill_s: float
    decode_s: float

    def to_wire(self) -> dict[str, float]:
        """Milliseconds, under llama.cpp's names."""
        return {
            "queue_ms": self.queue_s * 1000,
            "prompt_ms": self.prefill_s * 1000,
            "predicted_ms": self.decode_s * 1000,
        }


@dataclass(frozen=True, slots=True)
class Choice:
    """One finished answer. `tokens` is None where no log probabilities were asked for."""

    text: str
    finish_reason: str
    tokens: tuple[ScoredToken, ...] | None = None
    reasoning: str | None = None


class Answer:
    """Writes the objects of one answer: they share its id, model and time."""

    def __init__(self, route: Route, model: str) -> None:
        prefix, whole, chunk = _OBJECTS[route]
        self._route: Route = route
        common = {"id": prefix + uuid.uuid4().hex, "created": int(time.time()), "model": model}
        self._whole = {**common, "object": whole}
        self._chunk = {**common, "object": chunk}
        self._offsets: dict[int, int] = {}

    def opening(self, index: int) -> bytes:
        """The event that says who speaks; a completion has none."""
        if self._route == "completions":
            return b""
        return self._event(
            {"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
        )

    def piece(
        self,
        index: int,
        text: str,
        *,
        tokens: Sequence[ScoredToken] | None = None,
        finish_reason: str | None = None,
        is_reasoning: bool = False,
    ) -> bytes:
        """The event for one more piece of text, or for the end."""
        choice: dict[str, Any] = {"index": index, "finish_reason": finish_reason}
        if self._route == "chat":
            field = "reasoning_content" if is_reasoning else "content"
            choice["delta"] = {field: text} if text else {}
        else:
            choice["text"] = text
        if tokens is not None:
            choice["logprobs"] = self._logprobs(index, tokens)
        return self._event(choice)

    def closing(self, usage: Usage | None, timings: EngineTimings | None) -> bytes:
        """The usage event where it was asked for, and the end of the stream."""
        if usage is None:
            return sse_event(DONE)
        numbers = {"usage": usage.to_wire(), **({"timings": timings.to_wire()} if timings else {})}
        return sse_event({**self._chunk, "choices": [], **numbers}) + sse_event(DONE)

    def whole(
        self, choices: Iterable[Choice], usage: Usage | None, timings: EngineTimings | None
    ) -> dict[str, Any]:
        """The body of an answer that is not streamed; without usage or timings where there are none."""
        return {
            **self._whole,
            "choices": [self._finished(index, choice) for index, choice in enumerate(choices)],
            **({"usage": usage.to_wire()} if usage else {}),
            **({"timings": timings.to_wire()} if timings else {}),
        }

    def _finished(self, index: int, choice: Choice) -> dict[str, Any]:
        wire: dict[str, Any] = {"index": index, "finish_reason": choice.finish_reason}
        if self._route == "chat":
            wire["message"] = {"role": "assistant", "content": choice.text}
            if choice.reasoning is not None:
                wire["message"]["reasoning_content"] = choice.reasoning
        else:
            wire["text"] = choice.text
        wire["logprobs"] = None if choice.tokens is None else self._logprobs(index, choice.tokens)
        return wire

    def _logprobs(self, index: int, tokens: Sequence[ScoredToken]) -> dict[str, Any]:
        """In the shape of the route; offsets count the characters of a choice's tokens."""
        if self._route == "chat":
            content = [
                {**_scored(token), "top_logprobs": [_scored(top) for top in token.top]} for token in tokens
            ]
            return {"content": content, "refusal": None}
        offsets: list[int] = []
        for token in tokens:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(token.text)
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{t.text: t.logprob for t in token.top} for token in tokens],
            "text_offset": offsets,
        }

    def _event(self, choice: dict[str, Any]) -> bytes:
        return sse_event({**self._chunk, "choices": [choice]})


def _scored(token: ScoredToken) -> dict[str, Any]:
    # A token that is a part of a character has no text of its own; OpenAI allows null for its bytes.
    raw = None if "\ufffd" in token.text else list(token.text.encode())
    return {"token": token.text, "logprob": token.logprob, "bytes": raw}
