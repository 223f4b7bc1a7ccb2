"""The Responses API over chat completions: what is asked, what is answered, what the official client sees."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from decant.wire import sse_event
from decant_serve.openai_errors import ApiFault, unavailable
from decant_serve.responses_call import chat_body
from decant_serve.responses_voice import ResponsesVoice

pytestmark = pytest.mark.timeout(240)

TOOL = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": True}


@pytest.fixture(scope="module")
def server(serve_for_session: Callable[..., Any], write_script: Callable[..., Path]) -> Iterator[Any]:
    """A model that thinks, and one that dies in its answer."""
    thinking = {"match": "think", "reasoning": ["hm", " so"], "chunks": ["4", "2"], "prompt_tokens": 5}
    crash = {"match": "crash", "chunks": ["first"], "end": "cut"}
    with serve_for_session(write_script(thinking, crash, {"chunks": ["Hello", " you"]})) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.base_url, api_key="none", max_retries=0) as made:
        yield made


def test_a_conversation_becomes_chat_messages() -> None:
    items = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "input_text", "text": "look"}]},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "a cat"},
    ]
    chat = chat_body({"model": "m", "input": items, "instructions": "you see", "max_output_tokens": 5})
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    assert chat["messages"] == [
        {"role": "system", "content": "you see"},
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "look"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "a cat"},
    ]
    assert chat["max_completion_tokens"] == 5


def test_tools_and_formats_are_put_into_the_words_of_chats() -> None:
    form = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    choice = {"type": "function", "name": "look"}
    body = {"model": "m", "input": "hi", "tools": [TOOL], "tool_choice": choice, "text": {"format": form}}
    chat = chat_body(body)
    assert chat["tools"][0]["function"]["name"] == "look"
    assert chat["tool_choice"] == {"type": "function", "function": {"name": "look"}}
    assert chat["response_format"]["json_schema"]["schema"] == {"type": "object"}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"temprature": 1}, "temprature"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0.type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0"),
        ({"input": [7]}, "input.0"),
        ({"input": None}, "input"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"reasoning": {"summary": "auto"}}, "reasoning.summary"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(change: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiFault) as refused:
        chat_body({"model": "m", "input": "hi", **change})
    assert (refused.value.status, refused.value.param) == (400, param)


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": "warm"}, "temperature"),
        ({"reasoning": {"effort": "low"}}, "reasoning.effort"),
        ({"text": {"format": {"type": "json_object"}}}, "text.format"),
        ({"input": []}, "input"),
        ({"tools": [TOOL]}, "tools"),
    ],
)
def test_what_the_engine_lacks_is_named_in_the_words_of_this_api(
    server: Any, change: dict[str, Any], param: str
) -> None:
    response = server.http.post("/v1/responses", json={"model": server.model, "input": "hi", **change})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_the_official_client_gets_a_response(client: openai.OpenAI, server: Any) -> None:
    response = client.responses.create(model=server.model, input="hi", instructions="be kind")
    assert response.output_text == "Hello you"
    assert (response.status, response.instructions) == ("completed", "be kind")
    assert response.usage is not None
    assert response.usage.output_tokens == 2
    short = client.responses.create(model=server.model, input="hi", max_output_tokens=1)
    assert short.incomplete_details is not None
    assert (short.status, short.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_the_official_client_follows_a_stream(client: openai.OpenAI, server: Any) -> None:
    with client.responses.stream(model=server.model, input="think") as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert kinds.count("response.output_text.delta") == 2
    assert [item.type for item in final.output] == ["reasoning", "message"]
    assert final.output_text == "42"


def test_events_are_numbered_and_named(server: Any) -> None:
    body = {"model": server.model, "input": "think", "stream": True}
    response = server.http.post("/v1/responses", json=body, headers={"X-Decant-Timing": "1"})
    pairs = [event.split("\n") for event in response.text.split("\n\n") if event]
    events = [json.loads(data.removeprefix("data: ")) for _, data in pairs]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [name.removeprefix("event: ") for name, _ in pairs] == [event["type"] for event in events]
    assert events[-1]["response"]["decant_timing"]["completion_tokens"] == 4
    assert server.timing(response)["route"] == "responses"


def test_a_stream_that_breaks_ends_as_failed(server: Any) -> None:
    text = server.http.post(
        "/v1/responses", json={"model": server.model, "input": "crash", "stream": True}
    ).text
    *_, error, failed = [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: ")]
    assert (error["type"], failed["type"]) == ("error", "response.failed")
    assert failed["response"]["status"] == "failed"


def chunk(**delta: Any) -> bytes:
    return sse_event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})


def test_a_function_call_is_an_item_of_its_own() -> None:
    voice = ResponsesVoice({"model": "m", "tools": [TOOL]})
    first = {"index": 0, "id": "c1", "type": "function", "function": {"name": "look", "arguments": ""}}
    stream = [
        chunk(content="I look"),
        chunk(tool_calls=[first]),
        chunk(tool_calls=[{"index": 0, "function": {"arguments": '{"a":'}}]),
        chunk(tool_calls=[{"index": 0, "function": {"arguments": "1}"}}]),
        sse_event("[DONE]"),
    ]
    written = b"".join(voice.stream(event) for event in stream).decode()
    events = [json.loads(line[6:]) for line in written.split("\n") if line.startswith("data: ")]
    message, call = events[-1]["response"]["output"]
    assert message["content"][0]["text"] == "I look"
    assert (call["call_id"], call["name"], call["arguments"]) == ("c1", "look", '{"a":1}')
    assert [event["item"]["type"] for event in events if event["type"] == "response.output_item.done"] == [
        "message",
        "function_call",
    ]


def test_a_failure_before_the_first_event_still_says_which_response_failed() -> None:
    text = ResponsesVoice({"model": "m"}).error_event(unavailable("gone")).decode()
    assert text.startswith("event: response.created\n")
    assert '"code":"engine_unavailable"' in text


def test_an_empty_answer_is_a_message_without_text() -> None:
    voice = ResponsesVoice({"model": "m"})
    written = voice.stream(chunk() + sse_event("[DONE]")).decode()
    last = json.loads(written.strip().rpartition("data: ")[2])
    assert last["response"]["output"][0]["content"][0]["text"] == ""
