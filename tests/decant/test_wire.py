import json
import os
import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from decant.wire import (
    DONE,
    ChatRequest,
    Message,
    SseDecoder,
    canonical_json,
    error_object,
    parse_error,
    request_key,
    sse_event,
)

STREAM = (
    b": warming up\r\n\r\n"
    b'data: {"a": "\xc3\xa9\xf0\x9f\x8e\x81"}\r\n\r\n'
    b"event: note\r\ndata: two\r\ndata:lines\r\n\r\n"
    b"id: 7\rdata: old mac\r\r"
    b"\n\n"
    b"data\n\n"
    b"data: [DONE]\n\n"
)
EVENTS = ['{"a": "é🎁"}', "two\nlines", "old mac", "", "[DONE]"]


def decode(pieces: list[bytes]) -> list[str]:
    decoder = SseDecoder()
    return [event for piece in pieces for event in decoder.feed(piece)]


def test_several_events_in_one_read() -> None:
    assert decode([STREAM]) == EVENTS


@pytest.mark.parametrize("size", [1, 2, 3, 5, 17])
def test_events_cut_anywhere_are_the_same_events(size: int) -> None:
    assert decode([STREAM[at : at + size] for at in range(0, len(STREAM), size)]) == EVENTS


@pytest.mark.parametrize("at", range(len(STREAM)))
def test_one_cut_at_every_byte(at: int) -> None:
    assert decode([STREAM[:at], b"", STREAM[at:]]) == EVENTS


def test_an_event_is_out_with_its_last_byte_not_with_the_next_read() -> None:
    assert SseDecoder().feed(b"data: x\r\r") == ["x"]


def test_a_byte_order_mark_is_not_part_of_the_first_event() -> None:
    assert decode([b"\xef\xbb", b"\xbfdata: x\n\n"]) == ["x"]


def test_the_last_event_may_lack_its_blank_line() -> None:
    decoder = SseDecoder()
    assert decoder.feed(b"data: [DONE]") == []
    assert decoder.finish() == [DONE]
    assert decoder.finish() == []


def test_an_endless_event_is_refused() -> None:
    decoder = SseDecoder(max_event_bytes=100)
    assert decoder.feed(b"data: 123\n" * 10) == []
    with pytest.raises(ValueError, match="more than 100 bytes"):
        decoder.feed(b"data: 123\n" * 30)


def test_what_we_write_we_can_read() -> None:
    chunk = {"choices": [{"delta": {"content": "a\nb é"}}]}
    first, last = decode([sse_event(chunk) + sse_event(DONE)])
    assert (json.loads(first), last) == (chunk, DONE)


def test_canonical_json_is_one_spelling_of_equal_values() -> None:
    assert canonical_json({"b": 1.0, "a": [True, None, "é"]}) == canonical_json(
        {"a": (True, None, "é"), "b": 1}
    )
    assert canonical_json({"b": 0.7, "a": "é"}) == '{"a":"é","b":0.7}'.encode()
    assert canonical_json(True) != canonical_json(1)


def test_canonical_json_takes_lone_surrogates_and_refuses_nan() -> None:
    assert canonical_json(json.loads('"\\ud800"')) != canonical_json(json.loads('"\\ud801"'))
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))


def key(**changes: Any) -> str:
    request = {"messages": [{"role": "user", "content": "hi"}], "temperature": 1, "seed": 3}
    arguments: dict[str, Any] = {"model": "m", "revision": "r", "sample_index": 0, "request": request}
    return request_key(**(arguments | changes))


def test_the_key_names_the_model_the_sample_and_the_request() -> None:
    others = [
        key(model="n"),
        key(revision=None),
        key(sample_index=1),
        key(request={"messages": [], "temperature": 1, "seed": 3}),
        key(request={"messages": [{"role": "user", "content": "hi"}], "temperature": 0.9, "seed": 3}),
    ]
    assert len({key(), *others}) == 6


def test_the_key_ignores_how_the_answer_travels() -> None:
    request = {"seed": 3, "temperature": 1.0, "messages": [{"content": "hi", "role": "user"}]}
    assert key() == key(request=request | {"stream": True, "user": "mia", "model": "alias", "top_p": None})


def test_the_key_counts_fields_that_only_the_server_knows() -> None:
    request = {"messages": [{"role": "user", "content": "hi"}], "temperature": 1, "seed": 3}
    assert key(request=request | {"guided_regex": "[0-9]"}) != key()


def test_the_key_is_the_same_in_every_process() -> None:
    code = "from decant.wire import *; print(request_key(model='m', revision=None, request={'seed': 1}))"
    seeds = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert seeds[0] == seeds[1] == request_key(model="m", revision=None, request={"seed": 1}) + "\n"


def test_error_objects_have_the_four_fields() -> None:
    body = error_object("no such model", "not_found_error", param="model", code="model_not_found")
    assert body == {
        "error": {
            "message": "no such model",
            "type": "not_found_error",
            "param": "model",
            "code": "model_not_found",
        }
    }


@pytest.mark.parametrize(
    ("body", "message", "code"),
    [
        (error_object("bad", "invalid_request_error", code="x"), "bad", "x"),
        ({"error": "Unauthorized"}, "Unauthorized", None),
        ({"object": "error", "message": "too long", "code": 400}, "too long", 400),
        ({"detail": [{"loc": ["n"]}]}, '[{"loc": ["n"]}]', None),
    ],
)
def test_errors_are_read_in_every_shape_that_servers_use(
    body: Any, message: str, code: str | int | None
) -> None:
    found = parse_error(body)
    assert found is not None
    assert (found.message, found.code) == (message, code)


@pytest.mark.parametrize("body", [None, [], "error", {}, {"error": None}, {"choices": []}])
def test_an_answer_is_not_an_error(body: Any) -> None:
    assert parse_error(body) is None


def test_a_chat_request_keeps_what_it_does_not_know() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stop": "\n", "min_p": 0.1}
    request = ChatRequest.model_validate(body)
    assert request.stops == ("\n",)
    assert request.model_dump(exclude_unset=True) == body


@pytest.mark.parametrize(
    "wrong", [{"messages": []}, {"temperature": -1}, {"n": 0}, {"max_tokens": 0}, {"top_p": 2}]
)
def test_a_chat_request_out_of_range_is_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        ChatRequest.model_validate({"model": "m", "messages": [{"role": "user", "content": "hi"}]} | wrong)


def test_text_parts_are_joined_and_others_refused() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert Message(role="user", content=parts).text() == "ab"
    with pytest.raises(ValueError, match="image_url"):
        Message(role="user", content=[{"type": "image_url"}]).text()
