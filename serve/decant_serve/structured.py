"""Tools and answer formats: whether a request means something, and whether a grammar holds all of it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

from decant_serve.openai_errors import invalid_value

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_FORMATS = ("text", "json_object", "json_schema")
# What says something to a reader and asks nothing of an answer.
_ANNOTATIONS = frozenset(
    {"$comment", "$defs", "$id", "$schema", "default", "definitions", "description", "examples", "title"}
)
_TYPES: Mapping[str, frozenset[str]] = {
    "array": frozenset({"items", "minItems", "maxItems"}),
    "boolean": frozenset(),
    "integer": frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}),
    "null": frozenset(),
    "number": frozenset(),
    "object": frozenset({"properties", "required", "additionalProperties"}),
    "string": frozenset({"minLength", "maxLength"}),
}
_DEEPEST = 64


def check_response_format(given: Mapping[str, Any]) -> None:
    """ApiFault 400 for a `response_format` that is none, or whose schema a grammar would not hold."""
    kind = given.get("type")
    if kind not in _FORMATS:
        raise invalid_value("response_format.type", f"must be one of {', '.join(_FORMATS)}")
    if kind != "json_schema":
        return
    named = read_object(given.get("json_schema"), "response_format.json_schema")
    if not _NAME.fullmatch(str(named.get("name", ""))):
        raise invalid_value("response_format.json_schema.name", "must be 1 to 64 letters, digits, _ or -")
    check_schema(named.get("schema"), "response_format.json_schema.schema")


def check_tools(tools: Sequence[Mapping[str, Any]], choice: Any) -> None:
    """ApiFault 400 for tools that are no functions, and for a choice among them that cannot be made."""
    names: list[str] = []
    for index, tool in enumerate(tools):
        where = f"tools.{index}"
        if tool.get("type") != "function":
            raise invalid_value(f"{where}.type", "must be function")
        function = read_object(tool.get("function"), f"{where}.function")
        name = function.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name) or name in names:
            raise invalid_value(
                f"{where}.function.name", "must be 1 to 64 letters, digits, _ or -, and given once"
            )
        names.append(name)
        parameters = function.get("parameters")
        if parameters is not None:
            read_object(parameters, f"{where}.function.parameters")
        if function.get("strict"):
            check_schema(parameters, f"{where}.function.parameters")
    if choice is not None:
        _check_choice(choice, names)


def chosen_function(choice: Any) -> str | None:
    """The one function that a `tool_choice` names, if it does."""
    if not isinstance(choice, dict):
        return None
    function: Any = cast("dict[str, Any]", choice).get("function")
    name = cast("dict[str, Any]", function).get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def check_schema(schema: Any, where: str) -> None:
    """ApiFault 400 that names the first keyword in a JSON schema that a grammar would ignore."""
    for path, part in _walk(schema, where, 0):
        extra = set(part) - _ANNOTATIONS - _held(part, path)
        if extra:
            raise invalid_value(path, f"{', '.join(sorted(extra))} would not be held here; leave it out")


def _check_choice(choice: Any, names: Sequence[str]) -> None:
    if choice in ("none", "auto"):
        return
    name = chosen_function(choice)
    if choice == "required":
        if names:
            return
    elif name is None:
        raise invalid_value("tool_choice", "must be none, auto, required, or the function to call")
    elif name in names:
        return
    raise invalid_value("tool_choice", "asks for a call, and there is no such tool")


def _held(part: Mapping[str, Any], path: str) -> frozenset[str] | set[str]:
    """The keywords that hold here: beside a reference, alternatives or constants nothing else does."""
    for alone in ("$ref", "anyOf"):
        if alone in part:
            return {alone}
    kinds = _kinds(part, path)
    if "enum" in part or "const" in part:
        return {"type", "enum", "const"}
    return {"type", *(keyword for kind in kinds for keyword in _TYPES[kind])}


def _kinds(part: Mapping[str, Any], path: str) -> list[str]:
    given: Any = part.get("type", [])
    kinds = cast("list[Any]", given) if isinstance(given, list) else [given]
    if any(kind not in _TYPES for kind in kinds):
        raise invalid_value(f"{path}.type", f"must be one of {', '.join(_TYPES)}")
    return cast("list[str]", kinds)


def _walk(schema: Any, where: str, depth: int) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every schema within a schema, with its path."""
    if depth > _DEEPEST:
        raise invalid_value(where, f"is nested more than {_DEEPEST} deep")
    part = read_object(schema, where)
    yield where, part
    for keyword in ("properties", "$defs", "definitions"):
        for name, inner in read_object(part.get(keyword, {}), f"{where}.{keyword}").items():
            yield from _walk(inner, f"{where}.{keyword}.{name}", depth + 1)
    alternatives: Any = part.get("anyOf", [])
    if not isinstance(alternatives, list):
        raise invalid_value(f"{where}.anyOf", "must be a list of schemas")
    for index, inner in enumerate(cast("list[Any]", alternatives)):
        yield from _walk(inner, f"{where}.anyOf.{index}", depth + 1)
    if "items" in part:
        yield from _walk(part["items"], f"{where}.items", depth + 1)
    additional = part.get("additionalProperties", True)
    if not isinstance(additional, bool):
        yield from _walk(additional, f"{where}.additionalProperties", depth + 1)


def read_object(value: Any, where: str) -> Mapping[str, Any]:
    """The JSON object at a place in a request; ApiFault 400 for anything else."""
    if not isinstance(value, dict):
        raise invalid_value(where, "must be an object")
    return cast("dict[str, Any]", value)
