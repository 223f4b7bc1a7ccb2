"""Checks a JSON value against a JSON Schema (2020-12), offline: a reference elsewhere is an error."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from decant.errors import ConfigError

Schema = Mapping[str, Any]


def check_schema(schema: Any, where: str = "schema") -> None:
    """ConfigError, with the place, for what is no JSON schema or refers to what is not in it."""
    try:
        Draft202012Validator.check_schema(schema)
        _resolve_references(schema)
    except SchemaError as error:
        place = "".join(f".{step}" for step in error.absolute_path)
        raise ConfigError(f"{where}{place}: {error.message}") from None
    except Unresolvable as error:
        raise ConfigError(
            f"{where}: refers to {error.ref}, which is not in it; write that part out"
        ) from None


def _resolve_references(schema: Any) -> None:
    registry = Registry[Any]()
    resolver = registry.resolver_with_root(DRAFT202012.create_resource(schema))
    open_parts: list[Any] = [schema]
    while open_parts:
        part = open_parts.pop()
        if isinstance(part, dict):
            reference = cast("dict[str, Any]", part).get("$ref")
            if isinstance(reference, str):
                resolver.lookup(reference)
            open_parts += cast("dict[str, Any]", part).values()
        elif isinstance(part, list):
            open_parts += cast("list[Any]", part)


def problems(value: Any, schema: Schema, where: str = "answer") -> Iterator[str]:
    """What is wrong with a value, outermost first, one line each; nothing for a value that fits."""
    errors: list[ValidationError] = list(_validator(schema).iter_errors(value))
    for error in sorted(errors, key=lambda one: len(one.absolute_path)):
        place = "".join(f".{step}" if isinstance(step, str) else f"[{step}]" for step in error.absolute_path)
        yield f"{where}{place}: {error.message}"


def _validator(schema: Schema) -> Any:
    # An empty registry: the default one fetches references from the network.
    return Draft202012Validator(
        schema, registry=Registry(), format_checker=Draft202012Validator.FORMAT_CHECKER
    )
