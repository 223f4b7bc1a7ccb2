"""Log probabilities in OpenAI's shapes, from llama.cpp, which gives those of chats for everything."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from decant.wire import sse_event
from decant_serve.openai_errors import ApiFault
from decant_serve.passage import split_events


class LogprobsVoice:
    """Rewrites `logprobs` and leaves all else.

    At most `top` alternatives per token, as asked for. With `is_text` the shape is that of text completions,
    whose offsets count the characters of each choice's tokens.
    """

    def __init__(self, *, top: int, is_text: bool) -> None:
        self._top = top
        self._is_text = is_text
        self._offsets: dict[int, int] = {}

    def stream(self, passed: bytes) -> bytes:
        """Events without log probabilities go on as they are."""
        return b"".join(self._event(event) for event in split_events(passed)[0])

    def whole(self, body: bytes) -> bytes:
        """The whole answer."""
        return json.dumps(self._rewritten(json.loads(body))).encode()

    def error_event(self, fault: ApiFault) -> bytes:
        """OpenAI's error object as an event of its own."""
        return fault.event()

    def _event(self, event: bytes) -> bytes:
        if b'"top_logprobs"' not in event:
            return event
        return sse_event(self._rewritten(json.loads(event.partition(b"data:")[2])))

    def _rewritten(self, answer: dict[str, Any]) -> dict[str, Any]:
        choices: list[dict[str, Any]] = answer["choices"]
        return {**answer, "choices": [self._choice(choice) for choice in choices]}

    def _choice(self, choice: dict[str, Any]) -> dict[str, Any]:
        scored = choice.get("logprobs")
        if not scored:
            return choice
        tokens: list[dict[str, Any]] = scored["content"]
        shaped = self._text_shape(choice["index"], tokens) if self._is_text else self._chat_shape(tokens)
        return {**choice, "logprobs": shaped}

    def _chat_shape(self, tokens: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        content = [
            {**_scored(token), "top_logprobs": [_scored(top) for top in token["top_logprobs"][: self._top]]}
            for token in tokens
        ]
        return {"content": content, "refusal": None}

    def _text_shape(self, index: int, tokens: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        offsets: list[int] = []
        for token in tokens:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(token["token"])
        return {
            "tokens": [token["token"] for token in tokens],
            "token_logprobs": [token["logprob"] for token in tokens],
            "top_logprobs": [
                {top["token"]: top["logprob"] for top in token["top_logprobs"][: self._top]}
                for token in tokens
            ],
            "text_offset": offsets,
        }


def _scored(token: Mapping[str, Any]) -> dict[str, Any]:
    return {name: token[name] for name in ("token", "logprob", "bytes")}
