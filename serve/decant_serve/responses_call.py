"""POST /v1/responses as the chat completion that it asks for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from decant_serve.calls import Call, Features, read_call
from decant_serve.openai_errors import ApiFault, invalid_value, refusal
from decant_serve.responses_voice import ResponsesVoice
from decant_serve.structured import read_object

PATH = "/v1/responses"

_SAME = frozenset(
    {
        *("model", "temperature", "top_p", "parallel_tool_calls", "stream"),
        *("user", "safety_identifier", "prompt_cache_key"),
    }
)
# Values that ask for nothing; everything else of these is refused, as no answer is stored.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "background": (False,),
    "conversation": (),
    "include": ([],),
    "max_tool_calls": (),
    "previous_response_id": (),
    "prompt": (),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "stream_options": ({}, {"include_obfuscation": False}),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
}
# How a fault in the chat completion is called here.
_NAMES: Mapping[str, str] = {
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
    "verbosity": "text.verbosity",
}
_TEXT_PARTS = ("input_text", "output_text", "text")


def read_responses(body: Mapping[str, Any], *, engine: str, features: Features) -> Call:
    """Checks and translates a body; ApiFault names the parameter in the words of this API.

    Answers are not stored, so nothing can be referred to: a conversation comes whole in `input`. Reasoning
    items in it are left out, as chat templates have no place for earlier reasoning.
    """
    chat = chat_body(body)
    try:
        call = read_call("chat", None, chat, engine=engine, features=features)
    except ApiFault as fault:
        raise _renamed(fault) from None
    return replace(call, voice=ResponsesVoice(body))


def chat_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """The chat completion's body; ApiFault 400 for what it has no words for."""
    chat: dict[str, Any] = {"messages": []}
    for name, value in body.items():
        if name in _SAME:
            chat[name] = value
        elif name in _TRANSLATED:
            if value is not None:
                _TRANSLATED[name](chat, value)
        elif name not in _NEUTRAL and name != "metadata":
            raise refusal(
                f"Unrecognized request argument supplied: {name}", param=name, code="unknown_parameter"
            )
        elif value is not None and name != "metadata" and value not in _NEUTRAL[name]:
            raise _unsupported(name, "answers are not stored and run in the foreground")
    if not isinstance(body.get("input"), str | list):
        raise refusal("input: must be text or a list", param="input", code="missing_required_parameter")
    if chat.get("stream"):
        chat["stream_options"] = {"include_usage": True}
    return chat


def _take_instructions(chat: dict[str, Any], value: Any) -> None:
    if not isinstance(value, str):
        raise invalid_value("instructions", "must be text")
    chat["messages"].insert(0, {"role": "system", "content": value})


def _take_input(chat: dict[str, Any], value: Any) -> None:
    messages: list[dict[str, Any]] = chat["messages"]
    if isinstance(value, str):
        messages.append({"role": "user", "content": value})
        return
    for index, item in enumerate(_list(value, "input")):
        where = f"input.{index}"
        given = read_object(item, where)
        kind = given.get("type", "message")
        if kind not in _ITEMS:
            raise _unsupported(f"{where}.type", f"an item of type {kind!r} is not supported")
        _ITEMS[kind](messages, given, where)


def _add_message(messages: list[dict[str, Any]], item: Mapping[str, Any], where: str) -> None:
    role = item.get("role")
    if role not in ("user", "assistant", "system", "developer"):
        raise invalid_value(f"{where}.role", "must be user, assistant, system or developer")
    content = _text(item.get("content"), f"{where}.content")
    messages.append({"role": "system" if role == "developer" else role, "content": content})


def _add_call(messages: list[dict[str, Any]], item: Mapping[str, Any], where: str) -> None:
    for name in ("call_id", "name", "arguments"):
        if not isinstance(item.get(name), str):
            raise invalid_value(f"{where}.{name}", "must be text")
    function = {"name": item["name"], "arguments": item["arguments"]}
    call = {"id": item["call_id"], "type": "function", "function": function}
    if messages and messages[-1]["role"] == "assistant":
        messages[-1].setdefault("tool_calls", []).append(call)
    else:
        messages.append({"role": "assistant", "content": None, "tool_calls": [call]})


def _add_output(messages: list[dict[str, Any]], item: Mapping[str, Any], where: str) -> None:
    if not isinstance(item.get("call_id"), str):
        raise invalid_value(f"{where}.call_id", "must be text")
    content = _text(item.get("output"), f"{where}.output")
    messages.append({"role": "tool", "tool_call_id": item["call_id"], "content": content})


def _skip(_messages: list[dict[str, Any]], _item: Mapping[str, Any], _where: str) -> None:
    """Earlier reasoning."""


def _take_limit(chat: dict[str, Any], value: Any) -> None:
    chat["max_completion_tokens"] = value


def _take_text(chat: dict[str, Any], value: Any) -> None:
    text = read_object(value, "text")
    _only(text, "text", ("format", "verbosity"))
    if text.get("verbosity") is not None:
        chat["verbosity"] = text["verbosity"]
    if text.get("format") is None:
        return
    form = dict(read_object(text["format"], "text.format"))
    kind = form.pop("type", None)
    chat["response_format"] = {"type": kind, "json_schema": form} if kind == "json_schema" else {"type": kind}


def _take_reasoning(chat: dict[str, Any], value: Any) -> None:
    reasoning = read_object(value, "reasoning")
    _only(reasoning, "reasoning", ("effort",))
    if reasoning.get("effort") is not None:
        chat["reasoning_effort"] = reasoning["effort"]


def _take_tools(chat: dict[str, Any], value: Any) -> None:
    tools: list[dict[str, Any]] = []
    for index, tool in enumerate(_list(value, "tools")):
        given = dict(read_object(tool, f"tools.{index}"))
        if given.pop("type", None) != "function":
            raise _unsupported(f"tools.{index}.type", "only functions are supported")
        tools.append({"type": "function", "function": given})
    chat["tools"] = tools


def _take_choice(chat: dict[str, Any], value: Any) -> None:
    if isinstance(value, dict):
        given = cast("dict[str, Any]", value)
        value = {"type": given.get("type"), "function": {"name": given.get("name")}}
    chat["tool_choice"] = value


_TRANSLATED: Mapping[str, Callable[[dict[str, Any], Any], None]] = {
    "input": _take_input,
    "instructions": _take_instructions,
    "max_output_tokens": _take_limit,
    "reasoning": _take_reasoning,
    "text": _take_text,
    "tool_choice": _take_choice,
    "tools": _take_tools,
}
_ITEMS: Mapping[str, Callable[[list[dict[str, Any]], Mapping[str, Any], str], None]] = {
    "function_call": _add_call,
    "function_call_output": _add_output,
    "message": _add_message,
    "reasoning": _skip,
}


def _text(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for index, part in enumerate(_list(content, where)):
        given = read_object(part, f"{where}.{index}")
        if given.get("type") not in _TEXT_PARTS or not isinstance(given.get("text"), str):
            raise _unsupported(f"{where}.{index}", "only text is supported")
        texts.append(given["text"])
    return "".join(texts)


def _renamed(fault: ApiFault) -> ApiFault:
    head, dot, rest = (fault.param or "").partition(".")
    param = _NAMES.get(head, head) + dot + rest if fault.param else None
    return ApiFault(fault.status, fault.message, type=fault.kind, param=param, code=fault.code)


def _only(given: Mapping[str, Any], where: str, known: Sequence[str]) -> None:
    for name, value in given.items():
        if name not in known and value is not None:
            raise _unsupported(f"{where}.{name}", "it is not supported")


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise invalid_value(where, "must be a list")
    return cast("list[Any]", value)


def _unsupported(where: str, fault: str) -> ApiFault:
    return refusal(f"{where}: {fault}", param=where, code="unsupported_parameter")
