"""Recipes: a TOML file with tables of values and a list of stages that refer to them as `${table.key}`."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import Field

from decant.config import Config, apply_set, nearest, read_tree, validate
from decant.errors import ConfigError

_REFERENCE = re.compile(r"\$\{([^}]*)\}")
_OWN_KEYS = ("name", "workdir", "stage")


class StageEntry(Config):
    """One `[[stage]]` of a recipe. `python` names another interpreter for it."""

    name: str
    verb: str
    python: str | None = None
    config: dict[str, Any] = Field(default_factory=dict)


class _Shape(Config):
    name: str
    workdir: Path
    stage: tuple[StageEntry, ...]


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe with every reference resolved."""

    file: Path
    name: str
    workdir: Path
    stages: tuple[StageEntry, ...]


def read_recipe(file: Path, *, changes: Sequence[str] = ()) -> Recipe:
    """Reads a recipe and applies `changes` (`table.key=value`).

    References see the recipe's tables and `recipe.dir`, `recipe.workdir`. ConfigError on an unknown key or
    reference, and on a table's key that nothing refers to: most likely it is misspelt.
    """
    tree = read_tree(file)
    for change in changes:
        _check_known(tree, change, file)
        apply_set(tree, change)
    workdir = tree.get("workdir", f"runs/{file.stem}")
    values = {key: value for key, value in tree.items() if key not in _OWN_KEYS}
    values["recipe"] = {"dir": str(file.absolute().parent), "workdir": str(workdir)}
    scope = _Scope(file, values)
    shape = validate(
        _Shape,
        {
            "name": tree.get("name", file.stem),
            "workdir": workdir,
            "stage": scope.resolve(tree.get("stage", [])),
        },
        where=str(file),
    )
    scope.check_all_used()
    _check_names(file, shape.stage)
    return Recipe(file, shape.name, shape.workdir, shape.stage)


class _Scope:
    """The values that references may name, and which of them were."""

    def __init__(self, file: Path, values: dict[str, Any]) -> None:
        self._file = file
        self._values = values
        self._used: set[str] = set()

    def resolve(self, value: Any) -> Any:
        """`value` with every `${...}` replaced: a whole string by the thing itself, a part by its text."""
        if isinstance(value, dict):
            return {key: self.resolve(item) for key, item in cast(dict[str, Any], value).items()}
        if isinstance(value, list):
            return [self.resolve(item) for item in cast(list[Any], value)]
        if not isinstance(value, str):
            return value
        whole = _REFERENCE.fullmatch(value)
        if whole:
            return self.resolve(self._look_up(whole.group(1)))
        return _REFERENCE.sub(lambda match: str(self.resolve(self._look_up(match.group(1)))), value)

    def _look_up(self, path: str) -> Any:
        self._used.add(path)
        node: Any = self._values
        for part in path.split("."):
            if not isinstance(node, dict) or part not in node:
                hint = nearest(path, list(_paths(self._values)))
                raise ConfigError(f"{self._file}: unknown reference ${{{path}}}{hint}")
            node = cast(dict[str, Any], node)[part]
        return node

    def check_all_used(self) -> None:
        """ConfigError for the first value that no stage refers to."""
        for path in _paths({key: value for key, value in self._values.items() if key != "recipe"}):
            prefixes = [path.rsplit(".", cut)[0] for cut in range(path.count(".") + 1)]
            if not any(prefix in self._used for prefix in prefixes):
                hint = nearest(path, sorted(self._used - {path}))
                raise ConfigError(f"{self._file}: unknown key {path}: no stage uses it{hint}")


def _paths(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted paths of every leaf."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _paths(cast(dict[str, Any], value), f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _check_known(tree: dict[str, Any], change: str, file: Path) -> None:
    """A change may add a key to a table that a stage takes whole, but not invent a table."""
    top = change.partition("=")[0].strip().split(".")[0]
    if top not in tree and top not in _OWN_KEYS:
        known = [key for key in tree if key != "stage"]
        raise ConfigError(f"{file}: --set {change}: the recipe has no {top}{nearest(top, known)}")


def _check_names(file: Path, stages: Sequence[StageEntry]) -> None:
    seen: set[str] = set()
    for stage in stages:
        if stage.name in seen or not re.fullmatch(r"[\w.-]+", stage.name):
            problem = (
                "stands twice" if stage.name in seen else "may hold letters, digits, '.', '_' and '-' only"
            )
            raise ConfigError(f"{file}: stage name {stage.name!r} {problem}")
        seen.add(stage.name)
