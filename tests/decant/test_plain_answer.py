"""The short way through an ordinary answer: it says what the strict way says, or nothing."""

import json
from typing import Any

import pytest

from decant.api_error import ApiError
from decant.arrival import Received
from decant.exchange import Attempt, Call, Completion, Route
from decant.plain_answer import plain_completion

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 1}}


def chat(delta: dict[str, Any] | None = None, *, finish: str | None = None, **fields: Any) -> bytes:
    choice = {"index": 0, "delta": delta or {}, "finish_reason": finish}
    return event({"id": "x", "model": "m", "choices": [choice], **fields})


def event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def text(content: str, *, finish: str | None = None, **fields: Any) -> bytes:
    return event({"choices": [{"index": 0, "text": content, "finish_reason": finish}], **fields})


DONE = b"data: [DONE]\n\n"
END = chat(finish="stop") + event({"choices": [], "usage": USAGE}) + DONE
CHATS = [
    [chat({"role": "assistant", "content": ""}), chat({"content": "a"}), chat({"content": "b"}), END],
    [chat({"reasoning_content": "why"}), chat({"reasoning": "so"}), chat({"content": "é\n\u20ac"}), END],
    [chat({"content": "a"}) + chat({"content": "b"}), END],
    [chat({"content": "ab"})[:9], chat({"content": "ab"})[9:], END],
    [chat({"content": "stops"}), chat(finish="length")],
    [END],
    [chat({"content": each}) for each in ("a", " b", 'a "quote"', "back\\", "tab\t", "\u2028", "é", "", "c")]
    + [END],
    [
        chat({"content": "a"}),
        chat({"content": "b"}, finish="stop"),
        chat({"content": "c"}, usage=USAGE),
        DONE,
    ],
    [chat({"content": "a"}, extra={"content": "z"}), chat({"content": "b"}, extra={"content": "z"}), END],
    [event({"choices": [{"delta": {"content": text}} for text in pair]}) for pair in ("ab", "cd")] + [END],
    [chat({"content": None}, finish="stop", usage=USAGE, extra={"kept": [1]}), DONE],
]
TEXTS = [[text("a"), text("b", finish="stop"), event({"choices": [], "usage": USAGE}), DONE]]
UNUSUAL = [
    [b": a comment\n\n", chat({"content": "a"}), END],
    [chat({"content": "a"}).replace(b"\n", b"\r\n"), END],
    [b"event: message\n", chat({"content": "a"}), END],
    [chat({"tool_calls": [{"index": 0}]}), END],
    [chat({"content": "a"}, id=None), END],
    [chat({"content": 7}), END],
    [chat({"content": "a"})],
    [b"data: {]\n\n", END],
    [b"data: []\n\n", END],
    [event({"error": {"message": "out of memory"}}), DONE],
    [b'data: {"choices":[{"delta":{"content":"\\ud800"}}]}\n\n', END],
    [chat({"content": "a"}, usage={"prompt_tokens": "3"}), DONE],
    [event({"choices": [{"delta": {"content": "a"}, "logprobs": {"content": []}}]}), END],
    [b"data: " + b"[" * 200_000 + b"\n\n"],
    [],
]


def received(pieces: list[bytes], **fields: Any) -> Received:
    known: dict[str, Any] = {"status": 200, "headers": {"content-type": "text/event-stream"}, "began_s": 5.0}
    known["pieces"] = [(5.0 + 0.01 * place, piece) for place, piece in enumerate(pieces)]
    return Received(**{**known, **fields})


def both(route: Route, answer: Received) -> tuple[Completion | None, Completion]:
    call = Call(method="POST", url="http://x", request_id="r", intended_s=1.0, route=route)
    attempt = Attempt(call, 1)
    attempt.sent(4.9)
    return plain_completion(call, answer, sent_s=4.9), attempt.replayed(answer, stream=True)


@pytest.mark.parametrize(
    ("route", "pieces"), [("chat", each) for each in CHATS] + [("completions", each) for each in TEXTS]
)
def test_an_ordinary_answer_is_read_as_the_strict_way_reads_it(route: Route, pieces: list[bytes]) -> None:
    plain, strict = both(route, received(pieces))
    assert plain == strict


@pytest.mark.parametrize("pieces", UNUSUAL)
def test_what_is_not_ordinary_is_left_to_the_strict_way(pieces: list[bytes]) -> None:
    call = Call(method="POST", url="http://x", request_id="r")
    assert plain_completion(call, received(pieces), sent_s=4.9) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"status": 503},
        {"fault": OSError("reset")},
        {"headers": {"content-type": "application/json"}},
    ],
)
def test_a_refusal_or_a_broken_stream_is_no_ordinary_answer(fields: dict[str, Any]) -> None:
    call = Call(method="POST", url="http://x", request_id="r")
    assert plain_completion(call, received(CHATS[0], **fields), sent_s=4.9) is None


def test_the_strict_way_has_the_words_for_the_rest() -> None:
    with pytest.raises(ApiError, match="out of memory"):
        both("chat", received(UNUSUAL[9]))
