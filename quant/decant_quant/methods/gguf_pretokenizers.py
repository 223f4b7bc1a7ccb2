"""The pre-tokenizers that llama.cpp has, recognised by what tokenizer.json does, not by a model's name.

Only those whose splits were found equal on every code point are listed: llama.cpp's `tekken` and `gpt-4o`
split words with capitals outside ASCII in other places.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGITS = r"\p{N}"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """One of llama.cpp's: its name in the file, the splits it makes in order, and whether it skips the merges
    for a word that is a token."""

    name: str
    splits: tuple[str, ...]
    ignores_merges: bool = False


KNOWN = (
    PreTokenizer("gpt-2", (_GPT2,)),
    PreTokenizer("smollm", (_DIGITS, _GPT2)),
    PreTokenizer("qwen2", (_QWEN2,)),
    PreTokenizer("qwen35", (_QWEN35,)),
    PreTokenizer("llama-bpe", (_LLAMA3,), ignores_merges=True),
)


def recognise(definition: Mapping[str, Any] | None) -> PreTokenizer | None:
    """The pre-tokenizer that splits as `definition` (of tokenizer.json) does; None when none does."""
    splits = _splits(definition or {})
    return next((known for known in KNOWN if known.splits == splits), None)


def _splits(step: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The regular expressions that cut the text, in order; None for a step that is no such cut."""
    match step:
        case {"type": "Sequence", "pretokenizers": steps}:
            parts = [_splits(inner) for inner in steps]
            return (
                None
                if any(part is None for part in parts)
                else tuple(s for part in parts if part for s in part)
            )
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return (_GPT2,) if step.get("use_regex", True) else ()
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            return (pattern,)
        case {"type": "Digits", "individual_digits": True}:
            return (_DIGITS,)
        case _:
            return None
