"""Which of vLLM's tool parsers reads the calls that a model's chat template shows it how to write."""

import json
from pathlib import Path
from typing import Any, cast

# The parser, what the template must hold, and what it must not: only what was tried is here.
_PARSERS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    # Hermes, Qwen 2.5 and 3: a JSON object between tags. Qwen's coders write XML between the same tags.
    ("hermes", ("tools", "<tool_call>"), ("<function=",)),
)


def tool_parser(folder: Path) -> str | None:
    """The parser's name; None where the template knows no tools, or shows calls of another kind."""
    template = _chat_template(folder)
    for name, needed, unwanted in _PARSERS:
        if all(mark in template for mark in needed) and not any(mark in template for mark in unwanted):
            return name
    return None


def _chat_template(folder: Path) -> str:
    """The text of a checkpoint's template, or of all of them; empty where there is none."""
    own = folder / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    if not config.is_file():
        return ""
    told: Any = json.loads(config.read_text(encoding="utf-8")).get("chat_template") or ""
    if isinstance(told, str):
        return told
    named = cast("list[dict[str, str]]", told)
    return "\n".join(one["template"] for one in named if one.get("name") in ("default", "tool_use"))
