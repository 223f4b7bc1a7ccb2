"""A stream on its way through: what is passed on, and what is read off it."""

import pytest

from decant_serve.openai_errors import ApiFault
from decant_serve.passage import Passage

ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'
HELLO = b'data: {"choices":[{"index":0,"delta":{"content":"hello"},"finish_reason":null}]}\n\n'
END = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":1},"timings":{"prompt_n":3}}\n\n'
DONE = b"data: [DONE]\n\n"
STREAM = ROLE + HELLO + END + USAGE + DONE


def passed(passage: Passage, received: bytes, size: int) -> bytes:
    parts = [received[at : at + size] for at in range(0, len(received), size)]
    return b"".join(passage.take(part, float(n)) for n, part in enumerate(parts))


@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
def test_bytes_pass_unchanged_however_they_are_cut(size: int) -> None:
    assert passed(Passage(wants_usage=True), STREAM, size) == STREAM


@pytest.mark.parametrize("size", [1, 7, 100, 10_000])
def test_the_usage_event_is_kept_from_a_client_that_did_not_ask(size: int) -> None:
    passage = Passage(wants_usage=False)
    assert passed(passage, STREAM, size) == ROLE + HELLO + END + DONE
    assert passage.usage == {"prompt_tokens": 3, "completion_tokens": 1}
    assert passage.engine_numbers == {"prompt_n": 3}


def test_only_events_with_content_are_timed() -> None:
    passage = Passage(wants_usage=False)
    for at_s, event in enumerate([ROLE, HELLO, HELLO, END, USAGE, DONE]):
        passage.take(event, float(at_s))
    assert passage.content_times_s == [1.0, 2.0]
    assert passage.finish_reason == "stop"
    assert passage.is_done


def test_what_the_model_says_about_json_is_not_taken_for_the_protocol() -> None:
    spoken = (
        rb'data: {"choices":[{"delta":{"content":"{\"usage\": {\"x\":1}, \"finish_reason\": \"stop\"}"}}]}'
    )
    passage = Passage(wants_usage=False)
    passage.take(spoken + b"\n\n", 0.0)
    assert passage.usage is None
    assert passage.finish_reason is None


def test_carriage_returns_end_events_too() -> None:
    passage = Passage(wants_usage=False)
    assert passage.take((HELLO + DONE).replace(b"\n", b"\r\n"), 0.0).count(b"\r\n\r\n") == 2
    assert passage.is_done


def test_an_event_that_never_ends_does_not_fill_the_memory() -> None:
    passage = Passage(wants_usage=False)
    with pytest.raises(ApiFault, match="without an end"):
        passed(passage, b"data: " + b"x" * 2**25, 2**22)


def test_usage_beside_content_is_read_and_passed() -> None:
    event = b'data: {"choices":[{"text":"","finish_reason":"length"}],"usage":{"completion_tokens":5}}\n\n'
    passage = Passage(wants_usage=False)
    assert passage.take(event, 0.0) == event
    assert passage.usage == {"completion_tokens": 5}
