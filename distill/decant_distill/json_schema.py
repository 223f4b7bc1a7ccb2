"""Checks a JSON value against the part of JSON Schema (2020-12) that endpoints take for constrained answers.

A keyword outside that part is an error when the schema is read: a rule that is not checked would look kept.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

from decant.errors import ConfigError

Schema = Mapping[str, Any]

_TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}
_NOTES = frozenset({"$schema", "$id", "$comment", "title", "description", "default", "examples"})
_BRANCHES = ("anyOf", "oneOf", "allOf")


def check_schema(schema: Any, where: str = "schema") -> None:
    """ConfigError for a schema that `problems` could not check in full, with the place in it."""
    if not isinstance(schema, Mapping):
        raise ConfigError(f"{where}: a JSON schema is a table, not {schema!r}")
    rules = cast(Schema, schema)
    for keyword in rules:
        if keyword not in _KEYWORDS and keyword not in _NOTES:
            raise ConfigError(f"{where}: the keyword {keyword!r} is not supported; leave it out")
    unknown = [name for name in _types(rules) if name not in _TYPES]
    if unknown:
        raise ConfigError(f"{where}: unknown type {unknown[0]!r} (known: {', '.join(_TYPES)})")
    if "pattern" in rules:
        try:
            re.compile(rules["pattern"])
        except (re.error, TypeError) as error:
            raise ConfigError(f"{where}.pattern: {error}") from None
    for name, inner in _inner(rules):
        check_schema(inner, f"{where}.{name}")


def problems(value: Any, schema: Schema, where: str = "answer") -> Iterator[str]:
    """What is wrong with a value, one line each; nothing for a value that fits."""
    for keyword, rule in schema.items():
        check = _KEYWORDS.get(keyword)
        if check is not None:
            yield from check(value, rule, schema, where)


def _types(schema: Schema) -> list[str]:
    named = schema.get("type", [])
    return [named] if isinstance(named, str) else list(named)


def _inner(schema: Schema) -> Iterator[tuple[str, Any]]:
    properties = cast(Mapping[str, Any], schema.get("properties", {}))
    yield from ((f"properties.{name}", inner) for name, inner in properties.items())
    for keyword in _BRANCHES:
        branches = cast(Sequence[Any], schema.get(keyword, []))
        yield from ((f"{keyword}[{i}]", inner) for i, inner in enumerate(branches))
    if "items" in schema:
        yield "items", schema["items"]
    if not isinstance(schema.get("additionalProperties", True), bool):
        yield "additionalProperties", schema["additionalProperties"]


def _is(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    if name == "integer" and isinstance(value, float):
        return value.is_integer()
    return isinstance(value, _TYPES[name])


def _check_type(value: Any, _rule: Any, schema: Schema, where: str) -> Iterator[str]:
    names = _types(schema)
    if not any(_is(value, name) for name in names):
        yield f"{where} is not of type {' or '.join(names)}"


def _check_enum(value: Any, rule: Any, _schema: Schema, where: str) -> Iterator[str]:
    if not any(_same(value, allowed) for allowed in rule):
        yield f"{where} is none of {json.dumps(rule, ensure_ascii=False)}"


def _check_const(value: Any, rule: Any, _schema: Schema, where: str) -> Iterator[str]:
    if not _same(value, rule):
        yield f"{where} is not {json.dumps(rule, ensure_ascii=False)}"


def _same(left: Any, right: Any) -> bool:
    # To Python True is 1; to JSON it is not.
    return left == right and isinstance(left, bool) == isinstance(right, bool)


def _check_properties(value: Any, rule: Any, _schema: Schema, where: str) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in rule.items():
            if name in value:
                yield from problems(value[name], inner, f"{where}.{name}")


def _check_required(value: Any, rule: Any, _schema: Schema, where: str) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (f"{where} lacks {name}" for name in rule if name not in value)


def _check_additional(value: Any, rule: Any, schema: Schema, where: str) -> Iterator[str]:
    if not isinstance(value, dict) or rule is True:
        return
    known = schema.get("properties", {})
    for name, inner in cast(dict[str, Any], value).items():
        if name in known:
            continue
        if rule is False:
            yield f"{where} has the unknown key {name}"
        else:
            yield from problems(inner, rule, f"{where}.{name}")


def _check_items(value: Any, rule: Any, _schema: Schema, where: str) -> Iterator[str]:
    if isinstance(value, list):
        for i, item in enumerate(cast(list[Any], value)):
            yield from problems(item, rule, f"{where}[{i}]")


def _check_unique(value: Any, rule: Any, _schema: Schema, where: str) -> Iterator[str]:
    if rule and isinstance(value, list):
        items = [json.dumps(item, sort_keys=True) for item in cast(list[Any], value)]
        if len(set(items)) < len(items):
            yield f"{where} repeats an item"


def _check_pattern(value: Any, rule: Any, _schema: Schema, where: str) -> Iterator[str]:
    if isinstance(value, str) and re.search(rule, value) is None:
        yield f"{where} does not match {rule}"


def _check_any(value: Any, rule: Any, _schema: Schema, where: str) -> Iterator[str]:
    if not any(not list(problems(value, branch)) for branch in rule):
        yield f"{where} fits no branch of anyOf"


def _check_one(value: Any, rule: Any, _schema: Schema, where: str) -> Iterator[str]:
    fitting = sum(not list(problems(value, branch)) for branch in rule)
    if fitting != 1:
        yield f"{where} fits {fitting} branches of oneOf, not one"


def _check_all(value: Any, rule: Any, _schema: Schema, where: str) -> Iterator[str]:
    for branch in rule:
        yield from problems(value, branch, where)


_Check = Callable[[Any, Any, Schema, str], Iterator[str]]


def _bound(kind: type | tuple[type, ...], fits: Callable[[Any, Any], bool], words: str) -> _Check:
    def check(value: Any, rule: Any, _schema: Schema, where: str) -> Iterator[str]:
        if isinstance(value, kind) and not isinstance(value, bool) and not fits(value, rule):
            yield f"{where} {words} {rule}"

    return check


_NUMBER = (int, float)
_KEYWORDS: dict[str, _Check] = {
    "type": _check_type,
    "enum": _check_enum,
    "const": _check_const,
    "properties": _check_properties,
    "required": _check_required,
    "additionalProperties": _check_additional,
    "items": _check_items,
    "uniqueItems": _check_unique,
    "pattern": _check_pattern,
    "anyOf": _check_any,
    "oneOf": _check_one,
    "allOf": _check_all,
    "minItems": _bound(list, lambda value, least: len(value) >= least, "has fewer items than"),
    "maxItems": _bound(list, lambda value, most: len(value) <= most, "has more items than"),
    "minLength": _bound(str, lambda value, least: len(value) >= least, "is shorter than"),
    "maxLength": _bound(str, lambda value, most: len(value) <= most, "is longer than"),
    "minimum": _bound(_NUMBER, lambda value, least: value >= least, "is less than"),
    "maximum": _bound(_NUMBER, lambda value, most: value <= most, "is more than"),
    "exclusiveMinimum": _bound(_NUMBER, lambda value, least: value > least, "is not more than"),
    "exclusiveMaximum": _bound(_NUMBER, lambda value, most: value < most, "is not less than"),
}
