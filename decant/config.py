"""Configs: TOML or JSON plus `--set a.b=c` into one frozen object; an unknown key names the nearest."""

import difflib
import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, cast, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from decant.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Role:
    """Marks a path field as something a stage reads or writes, for the pipeline's hashing."""

    kind: Literal["input", "output"]


InputPath = Annotated[Path, Role("input")]
OutputPath = Annotated[Path, Role("output")]
OptionalInputPath = Annotated[Path | None, Role("input")]
OptionalOutputPath = Annotated[Path | None, Role("output")]
InputPaths = Annotated[tuple[Path, ...], Role("input")]


class Config(BaseModel):
    """The base of every config: frozen, no unknown keys, no live objects."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, protected_namespaces=())

    positional: ClassVar[tuple[str, ...]] = ()
    """Fields that the command line takes without a flag."""

    set_field: ClassVar[str | None] = None
    """The field that collects every `--set` as it stands, for commands whose `--set` changes another file."""

    def with_changes(self, **changes: Any) -> Self:
        """A copy with other values, validated again."""
        return type(self).model_validate({**dict(self), **changes})


C = TypeVar("C", bound=Config)


def load_config(
    cls: type[C],
    *,
    file: Path | None = None,
    sets: Sequence[str] = (),
    values: Mapping[str, Any] | None = None,
) -> C:
    """Reads `file`, then applies `sets` (`a.b=value`), then `values`; ConfigError on what it cannot use."""
    tree: dict[str, Any] = read_tree(file) if file else {}
    for item in sets:
        apply_set(tree, item)
    tree.update(values or {})
    return validate(cls, tree, where=str(file) if file else "command line")


def validate(cls: type[C], tree: Mapping[str, Any], *, where: str) -> C:
    """Turns a tree into a config; every problem becomes one ConfigError line."""
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        problems = [_describe(cls, dict(problem)) for problem in error.errors()]
        raise ConfigError(f"{where}: {'; '.join(problems)}") from None


def read_tree(file: Path) -> dict[str, Any]:
    """Reads a .toml or .json file whose top level is a table."""
    try:
        text = file.read_text(encoding="utf-8")
        tree = json.loads(text) if file.suffix == ".json" else tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such config file") from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"{file}: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{file}: the top level must be a table of keys")
    return cast(dict[str, Any], tree)


def apply_set(tree: dict[str, Any], item: str) -> None:
    """Applies one `a.b=value`; the value is TOML when it parses as TOML, else a string."""
    path, separator, text = item.partition("=")
    if not separator or not path.strip():
        raise ConfigError(f"--set {item}: write it as key=value or table.key=value")
    *tables, key = path.strip().split(".")
    for table in tables:
        branch: Any = tree.setdefault(table, {})
        if not isinstance(branch, dict):
            raise ConfigError(f"--set {item}: {table} is a value, not a table")
        tree = cast(dict[str, Any], branch)
    tree[key] = parse_value(text)


def parse_value(text: str) -> Any:
    """A TOML value when `text` is one (`3`, `true`, `[1, 2]`, `"x"`), else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def nearest(name: str, known: Sequence[str]) -> str:
    """` (did you mean x?)` for the known name closest to `name`, or the list of names when none is close."""
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if matches:
        return f" (did you mean {matches[0]}?)"
    return f" (known: {', '.join(sorted(known))})" if known else ""


def paths_with_role(config: Config, kind: Literal["input", "output"]) -> list[Path]:
    """Every path in the config, nested ones included, that the command reads or writes."""
    return list(_walk(config, kind))


def _walk(config: Config, kind: str) -> Iterator[Path]:
    for name, field in type(config).model_fields.items():
        value: Any = dict(config)[name]
        roles = [item.kind for item in field.metadata if isinstance(item, Role)]
        values = cast(Sequence[Any], value) if isinstance(value, list | tuple) else (value,)
        for item in values:
            if isinstance(item, Config):
                yield from _walk(item, kind)
            elif isinstance(item, Path) and kind in roles:
                yield item


def _describe(cls: type[Config], problem: dict[str, Any]) -> str:
    location = tuple(problem["loc"])
    where = ".".join(str(part) for part in location)
    if problem["type"] == "extra_forbidden":
        return f"unknown key {where}{nearest(str(location[-1]), _known_keys(cls, location[:-1]))}"
    if problem["type"] == "missing":
        return f"{where} is required"
    given = f" (got {problem['input']!r})" if not isinstance(problem["input"], dict) else ""
    return f"{where or 'config'}: {problem['msg'].removeprefix('Value error, ')}{given}"


def _known_keys(cls: type[Config], location: tuple[Any, ...]) -> list[str]:
    model: type[Config] = cls
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            inner = config_class(model.model_fields[part].annotation)
            if inner is None:
                return []
            model = inner
    return list(model.model_fields)


def config_class(annotation: Any) -> type[Config] | None:
    """The Config class in an annotation such as `X`, `X | None` or `list[X]`."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return annotation
    return next((found for item in get_args(annotation) if (found := config_class(item))), None)
