"""Jinja prompt templates: a shipped one by name or a file of one's own, rendered in a sandbox, named by hash.

Text of a row is only ever a value: what it holds in braces is never run.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from decant.errors import ConfigError, DataError

if TYPE_CHECKING:
    import jinja2
    import jinja2.nodes

ShippedTemplate = Literal["classify", "extract", "answer", "judge"]
_SHIPPED_FOLDER = Path(__file__).parent / "prompts"
SHIPPED: tuple[ShippedTemplate, ...] = get_args(ShippedTemplate)


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """A compiled template. `fields` are the names it cannot do without, `version` names its text by hash."""

    name: str
    version: str
    fields: tuple[str, ...]
    _render: Callable[..., str]

    def render(self, values: Mapping[str, Any]) -> str:
        """The prompt for these values; DataError for values that the template cannot be rendered with."""
        import jinja2

        try:
            return self._render(dict(values)).strip()
        except jinja2.UndefinedError as error:
            raise DataError(f"template {self.name}: {error.message}; the row lacks it") from None
        except (jinja2.TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise DataError(f"template {self.name}: cannot be rendered ({error})") from None


def load_template(name: ShippedTemplate | None, file: Path | None) -> PromptTemplate:
    """A shipped template or that of a file; ConfigError for one that is not there or is no template."""
    path = file if file is not None else _SHIPPED_FOLDER / f"{name}.jinja"
    try:
        changed = path.stat().st_mtime_ns
        return _load(path, changed)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read the template ({error})") from None


@lru_cache(maxsize=16)
def _load(path: Path, _changed_ns: int) -> PromptTemplate:
    text = path.read_text(encoding="utf-8")
    environment = _environment()
    import jinja2

    try:
        tree = environment.parse(text)
        fields = _needed(tree)
        compiled = environment.from_string(text)
    except jinja2.TemplateError as error:
        line = error.lineno if isinstance(error, jinja2.TemplateSyntaxError) else 0
        raise ConfigError(f"{path}:{line}: not a template ({error}); mend it and run again") from None
    version = hashlib.sha256(text.encode()).hexdigest()[:12]
    return PromptTemplate(path.stem, version, fields, compiled.render)


@lru_cache(maxsize=1)
def _environment() -> "jinja2.Environment":
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    return ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
    )


def _needed(tree: "jinja2.nodes.Template") -> tuple[str, ...]:
    """The names that must be there: all but those that the template asks after or has a default for."""
    from jinja2 import meta, nodes

    asked_after = {
        node.node.name
        for node in (*tree.find_all(nodes.Test), *tree.find_all(nodes.Filter))
        if node.name in ("defined", "undefined", "default", "d") and isinstance(node.node, nodes.Name)
    }
    return tuple(sorted(meta.find_undeclared_variables(tree) - asked_after))
