"""What a request asks, whoever answers it and however the answer is drawn: the key of online look-up.

A label was bought with a teacher's name, a temperature, a seed and a sample's number; production asks the
same with others. `decant.wire.request_key` tells such requests apart, this key does not.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, cast

from decant.wire import TRANSPORT_FIELDS, canonical_json

# They choose among the answers that a model may give, bound their length or tell more of them; the question
# stays the same.
_DRAWING_FIELDS = frozenset(
    {
        "frequency_penalty",
        "logprobs",
        "max_completion_tokens",
        "max_tokens",
        "min_p",
        "presence_penalty",
        "seed",
        "temperature",
        "top_k",
        "top_logprobs",
        "top_p",
    }
)
_LABELS = frozenset({"prompt_cache_key", "safety_identifier"})
_NOT_ASKED = TRANSPORT_FIELDS | _DRAWING_FIELDS | _LABELS
_ABOUT_TOOLS = frozenset({"tool_choice", "parallel_tool_calls"})
_HASH_CHARACTERS = 32


def ask_key(request: Mapping[str, Any]) -> str:
    """Names what is asked: 32 hex digits over the messages and every field that changes the question.

    Equal are messages whose text comes whole or in parts, and fields that are absent or say what their
    absence says. Text counts to the letter. A field that we do not know counts, so that it can only miss.
    """
    asked = {
        name: value
        for name, value in request.items()
        if name not in _NOT_ASKED and not _is_neutral(name, value, request)
    }
    messages = asked.get("messages")
    if isinstance(messages, list):
        asked["messages"] = [_message(message) for message in cast(list[Any], messages)]
    return hashlib.sha256(canonical_json(asked)).hexdigest()[:_HASH_CHARACTERS]


def _is_neutral(name: str, value: Any, request: Mapping[str, Any]) -> bool:
    if value is None or value is False or value in ("", [], {}):
        return True
    if name in _ABOUT_TOOLS:
        return not request.get("tools")
    if name == "n":
        return type(value) is int and value == 1
    return name == "response_format" and value == {"type": "text"}


def _message(message: Any) -> Any:
    if not isinstance(message, Mapping):
        return message
    said = {name: value for name, value in cast(Mapping[str, Any], message).items() if value is not None}
    parts = said.get("content")
    if isinstance(parts, list):
        texts = [_text(part) for part in cast(Sequence[Any], parts)]
        if all(text is not None for text in texts):
            said["content"] = "".join(text for text in texts if text is not None)
    return said


def _text(part: Any) -> str | None:
    match part:
        case {"type": "text", "text": str(text)}:
            return text
        case _:
            return None
