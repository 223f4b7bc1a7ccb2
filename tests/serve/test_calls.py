"""Request bodies: what is accepted, and which parameter a refusal names."""

import json
from typing import Any

import pytest

from decant_serve.calls import Features, parse_body, read_call
from decant_serve.openai_errors import ApiFault

FEATURES = Features(chat=frozenset({"temperature", "max_tokens"}), completions=frozenset({"max_tokens"}))
CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def read(body: Any, *, features: Features = FEATURES) -> Any:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_call("chat", raw, parse_body(raw), engine="test", features=features)


def refused(body: Any) -> dict[str, Any]:
    with pytest.raises(ApiFault) as raised:
        read(body)
    assert raised.value.status == 400
    return json.loads(raised.value.body())["error"]


@pytest.mark.parametrize(
    "change",
    [
        {"n": 1},
        {"n": None},
        {"logprobs": False},
        {"presence_penalty": 0.0},
        {"response_format": {"type": "text"}},
        {"tools": []},
        {"user": "someone"},
        {"temperature": 1},
    ],
)
def test_parameters_that_ask_for_nothing_new_are_accepted(change: dict[str, Any]) -> None:
    assert read({**CHAT, **change}).request.messages[0].text() == "hi"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"n": 2}, "unsupported_parameter"),
        ({"n": True}, "unsupported_parameter"),
        ({"logprobs": True}, "unsupported_parameter"),
        ({"tools": [{"type": "function"}]}, "unsupported_parameter"),
        ({"temprature": 1}, "unknown_parameter"),
        ({"temperature": "1"}, "invalid_value"),
        ({"temperature": -1}, "invalid_value"),
        ({"max_tokens": 1.5}, "invalid_value"),
    ],
)
def test_a_refusal_names_the_parameter(change: dict[str, Any], code: str) -> None:
    error = refused({**CHAT, **change})
    assert (error["param"], error["code"]) == (next(iter(change)), code)


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b'{"model": NaN}', b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_refused(raw: bytes) -> None:
    assert refused(raw)["code"] == "invalid_json"


@pytest.mark.parametrize("content", [[{"type": "image_url"}], "\ud800", 7])
def test_content_that_is_no_text_is_refused(content: Any) -> None:
    error = refused({**CHAT, "messages": [{"role": "user", "content": content}]})
    assert error["param"].startswith("messages")


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    call = read({**CHAT, "messages": [{"role": "user", "content": parts}]})
    assert call.request.messages[0].text() == "ab"


def test_a_remote_endpoint_judges_for_itself() -> None:
    anything = Features(chat=frozenset(), completions=frozenset(), takes_anything=True)
    assert read({**CHAT, "top_k": 5, "n": 3}, features=anything).body["top_k"] == 5
