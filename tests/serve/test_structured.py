"""Answers that keep to a schema, and calls of functions: what is held, and what is refused."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from decant_serve.openai_errors import ApiFault
from decant_serve.structured import check_response_format, check_schema, check_tools

pytestmark = pytest.mark.timeout(240)

SCHEMA = {
    "type": "object",
    "properties": {"label": {"enum": ["yes", "no"]}, "n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["label", "n"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": SCHEMA, **more}}


def refused(check: Callable[..., None], *given: Any) -> str | None:
    with pytest.raises(ApiFault) as fault:
        check(*given)
    assert fault.value.status == 400
    return fault.value.param


@pytest.mark.parametrize(
    ("schema", "where"),
    [
        ({"type": "string", "pattern": "a+"}, "s"),
        ({"type": "array", "uniqueItems": True}, "s"),
        ({"type": "number", "minimum": 1}, "s"),
        ({"type": "object", "properties": {"a": {"type": "string", "format": "email"}}}, "s.properties.a"),
        ({"anyOf": [{"type": "null"}, {"type": "nothing"}]}, "s.anyOf.1.type"),
        ({"anyOf": [{"type": "null"}], "required": ["a"]}, "s"),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"oneOf": []}}}, "s.$defs.a"),
        ({"type": "array", "items": True}, "s.items"),
        ("text", "s"),
        (None, "s"),
    ],
)
def test_a_keyword_that_would_be_ignored_is_refused_by_its_place(schema: Any, where: str) -> None:
    assert refused(check_schema, schema, "s") == where


def test_what_pydantic_writes_for_plain_fields_is_taken() -> None:
    nullable = {
        "anyOf": [{"type": "string", "maxLength": 5}, {"type": "null"}],
        "default": None,
        "title": "A",
    }
    inner = {"type": "object", "properties": {"a": nullable}, "title": "Inner"}
    check_schema({"type": "array", "items": {"$ref": "#/$defs/I"}, "$defs": {"I": inner}}, "s")


@pytest.mark.parametrize(
    ("tools", "choice", "where"),
    [
        ([{"type": "web"}], None, "tools.0.type"),
        ([{"type": "function"}], None, "tools.0.function"),
        ([tool("a b")], None, "tools.0.function.name"),
        ([tool("a"), tool("a")], None, "tools.1.function.name"),
        ([tool("a")], "sometimes", "tool_choice"),
        ([tool("a")], {"type": "function", "function": {"name": "b"}}, "tool_choice"),
        ([], "required", "tool_choice"),
        (
            [tool("a", strict=True, parameters={"pattern": "x"})],
            None,
            "tools.0.function.parameters",
        ),
    ],
)
def test_tools_that_make_no_sense_are_refused(tools: Any, choice: Any, where: str) -> None:
    assert refused(check_tools, tools, choice) == where


def test_an_unknown_format_is_refused() -> None:
    assert refused(check_response_format, {"type": "xml"}) == "response_format.type"
    named = {"type": "json_schema", "json_schema": {"name": "n"}}
    assert refused(check_response_format, named) == "response_format.json_schema.schema"


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_keeps_to_its_schema(llamacpp_server: Any, stream: bool) -> None:
    with openai.OpenAI(base_url=llamacpp_server.base_url, api_key="none", max_retries=0) as client:
        messages: Any = [{"role": "user", "content": "hello cat 12"}]
        asked: Any = {"model": llamacpp_server.model, "messages": messages, "response_format": FORMAT}
        answer: Any = client.chat.completions.create(**asked, stream=stream, seed=3, max_tokens=300)
        if stream:
            text = "".join(chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices)
        else:
            text = answer.choices[0].message.content or ""
    parsed = json.loads(text)
    assert parsed["label"] in ("yes", "no")
    assert 0 <= parsed["n"] <= 9


def test_any_json_will_do_where_only_json_is_asked_for(llamacpp_server: Any) -> None:
    answer = llamacpp_server.chat("hello cat 12", response_format={"type": "json_object"}, max_tokens=200)
    assert answer.status_code == 200
    assert answer.json()["choices"][0]["message"]["content"].lstrip().startswith("{")


@pytest.mark.parametrize(
    "change",
    [
        {"tools": [tool("look")]},
        {
            "messages": [
                {"role": "user", "content": "x"},
                {"role": "tool", "tool_call_id": "1", "content": "y"},
            ]
        },
    ],
)
def test_tools_are_refused_where_the_template_has_none(llamacpp_server: Any, change: dict[str, Any]) -> None:
    response = llamacpp_server.chat("hi", **change)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == next(iter(change))


def test_a_format_is_refused_where_the_engine_has_no_grammar(transformers_server: Any) -> None:
    response = transformers_server.chat("hi", response_format=FORMAT)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "response_format"


def test_several_prompts_in_one_request_are_refused(llamacpp_server: Any) -> None:
    body = {"model": llamacpp_server.model, "prompt": ["a", "b"], "max_tokens": 1}
    response = llamacpp_server.http.post("/v1/completions", json=body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "prompt"


@pytest.fixture(scope="module", params=["llamacpp", pytest.param("vllm", marks=pytest.mark.vllm)])
def tool_server(
    request: pytest.FixtureRequest,
    serve_for_session: Callable[..., Any],
    tool_model: Any,
    tmp_path_factory: pytest.TempPathFactory,
    run_decant: Callable[..., Any],
) -> Iterator[Any]:
    """A model whose chat template knows tools, on the engines that read its calls."""
    folder = tmp_path_factory.mktemp("tools")
    if request.param == "vllm":
        options: tuple[Any, ...] = request.getfixturevalue("vllm_options")
        with serve_for_session(tool_model.save(folder / "hf"), *options) as running:
            yield running
        return
    done = run_decant(
        "quantize", tool_model.save(folder / "hf"), "--output", folder / "gguf", "--method", "gguf:F16"
    )
    assert done.returncode == 0, done.stderr
    with serve_for_session(folder / "gguf") as running:
        yield running


NAMED = {"type": "function", "function": {"name": "pick"}}


@pytest.mark.parametrize("asked", ["auto", "required", NAMED], ids=["auto", "required", "named"])
def test_a_call_comes_back_as_a_call(tool_server: Any, asked: Any) -> None:
    tools = [{"type": "function", "function": {"name": "look"}}, tool("pick")]
    answer = tool_server.chat("hello cat 12", tools=tools, tool_choice=asked, max_tokens=300)
    assert answer.status_code == 200, answer.text
    (choice,) = answer.json()["choices"]
    function = choice["message"]["tool_calls"][0]["function"]
    assert function["name"] == "pick"
    assert json.loads(function["arguments"]) == {"label": "yes", "n": 1}
    # Where the function was named, OpenAI itself says `stop`, and so does vLLM.
    assert choice["finish_reason"] in ("tool_calls", *(["stop"] if asked == NAMED else []))


def test_a_streamed_call_reaches_the_official_client(tool_server: Any) -> None:
    with openai.OpenAI(base_url=tool_server.base_url, api_key="none", max_retries=0) as client:
        asked: Any = {"model": tool_server.model, "tool_choice": "required"}
        messages: Any = [{"role": "user", "content": "hello cat 12"}]
        chats: Any = [tool("pick")]
        with client.chat.completions.stream(**asked, messages=messages, tools=chats) as stream:
            final = stream.get_final_completion().choices[0].message
        flat: Any = [{"type": "function", **tool("pick")["function"]}]
        response = client.responses.create(**asked, input="hello cat 12", tools=flat)
    assert final.tool_calls
    assert final.tool_calls[0].function.name == "pick"
    (call,) = [item for item in response.output if item.type == "function_call"]
    assert (call.name, json.loads(call.arguments)["n"]) == ("pick", 1)


def test_the_output_of_a_call_goes_back_to_the_model(tool_server: Any) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "pick", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "done"},
    ]
    assert tool_server.chat("hi", messages=messages, tools=[tool("pick")]).status_code == 200
