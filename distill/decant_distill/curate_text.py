"""Rules on the text of a label: length, repetition, refusals, template residue, keywords, web-page habits."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from decant.config import Config
from decant_distill.curate_language import language_rule
from decant_distill.labels import Label

Preset = Literal["none", "instruct", "web"]


class TextConfig(Config):
    """Which texts are dropped. What is set by name holds; a preset fills in the rest."""

    preset: Preset = Field(
        default="none",
        description="instruct drops broken answers; web judges answers as web pages are judged",
    )
    max_preset_share: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="most labels that a preset may drop; more is an error, not a loss",
    )
    min_words: int | None = Field(default=None, ge=1, description="fewest words of reasoning and answer")
    max_words: int | None = Field(default=None, ge=1, description="most words of reasoning and answer")
    min_reasoning_words: int | None = Field(default=None, ge=1, description="fewest words of reasoning")
    max_repeated_lines: float | None = Field(
        default=None, ge=0, le=1, description="largest share of lines that repeat an earlier one"
    )
    max_repeated_ngrams: float | None = Field(
        default=None, ge=0, le=1, description="largest share of 5-word sequences that repeat an earlier one"
    )
    drop_refusals: bool | None = Field(default=None, description="drop answers that decline to answer")
    drop_residue: bool | None = Field(
        default=None, description="drop chat-template tokens, unfilled placeholders and filler text"
    )
    languages: tuple[str, ...] = Field(
        default=(), description="drop labels written in another language than these (en, de, ...)"
    )
    drop_keywords: tuple[str, ...] = Field(default=(), description="drop labels with any of these words")
    require_keywords: tuple[str, ...] = Field(default=(), description="drop labels with none of these words")


@dataclass(frozen=True, slots=True)
class TextRule:
    """A named rule on one label's text: why it drops it, or None. `is_preset`: not asked for by name."""

    name: str
    what: str
    reason: Callable[[Label], str | None]
    is_preset: bool


_PRESETS: dict[Preset, dict[str, object]] = {
    "none": {},
    # Nothing here asks for length, prose or punctuation: `Answer: 4` is a good label.
    "instruct": {
        "max_repeated_lines": 0.5,
        "max_repeated_ngrams": 0.5,
        "drop_refusals": True,
        "drop_residue": True,
    },
    # Gopher's bounds (Rae et al., 2021, table A1).
    "web": {
        "min_words": 50,
        "max_words": 100_000,
        "max_repeated_lines": 0.3,
        "max_repeated_ngrams": 0.15,
        "drop_residue": True,
    },
}


def text_rules(config: TextConfig) -> list[TextRule]:
    """The rules that a config turns on, in order."""
    return list(_rules(config))


def _rules(config: TextConfig) -> Iterator[TextRule]:
    asked = {name for name, value in config if value is not None}
    chosen = config.with_changes(**{k: v for k, v in _PRESETS[config.preset].items() if k not in asked})

    def rule(setting: str, what: str, reason: Callable[[Label], str | None]) -> TextRule:
        return TextRule(setting, what, reason, is_preset=setting not in asked)

    if (least := chosen.min_words) is not None:
        yield rule("min_words", f"fewer than {least} words", lambda label: _too_few(_text(label), least))
    if (most := chosen.max_words) is not None:
        yield rule("max_words", f"more than {most} words", lambda label: _too_many(_text(label), most))
    if (fewest := chosen.min_reasoning_words) is not None:
        what = f"fewer than {fewest} words of reasoning"
        yield rule("min_reasoning_words", what, lambda label: _too_few(label.reasoning or "", fewest))
    if (lines := chosen.max_repeated_lines) is not None:
        yield rule(
            "max_repeated_lines", "lines over and over", lambda label: _repeats_lines(_text(label), lines)
        )
    if (share := chosen.max_repeated_ngrams) is not None:
        yield rule(
            "max_repeated_ngrams", "words over and over", lambda label: _repeats_words(_text(label), share)
        )
    if chosen.drop_refusals:
        yield rule("drop_refusals", "declines to answer", _refuses)
    if chosen.drop_residue:
        yield rule("drop_residue", "template residue or filler", _has_residue)
    yield from _rules_without_a_preset(chosen)
    if config.preset == "web":
        yield from (TextRule(name, what, reason, is_preset=True) for name, what, reason in _WEB)


def _rules_without_a_preset(config: TextConfig) -> Iterator[TextRule]:
    if config.languages:
        what = f"not written in {', '.join(config.languages)}"
        yield TextRule("languages", what, language_rule(config.languages), is_preset=False)
    if config.drop_keywords:
        bad = _any_of(config.drop_keywords)

        def has(label: Label) -> str | None:
            found = bad.search(f"{label.question}\n{_text(label)}")
            return f"has the word {found[0]!r}" if found else None

        yield TextRule("drop_keywords", "has one of the words", has, is_preset=False)
    if config.require_keywords:
        wanted = _any_of(config.require_keywords)

        def lacks(label: Label) -> str | None:
            return None if wanted.search(f"{label.question}\n{_text(label)}") else "has none of the words"

        yield TextRule("require_keywords", "has none of the words", lacks, is_preset=False)


def _any_of(words: Sequence[str]) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w)(?:{'|'.join(re.escape(word) for word in words)})(?!\w)", re.IGNORECASE)


def _text(label: Label) -> str:
    return f"{label.reasoning}\n{label.answer}" if label.reasoning else label.answer or ""


def _too_few(text: str, least: int) -> str | None:
    count = len(text.split())
    return f"{count} words, fewer than {least}" if count < least else None


def _too_many(text: str, most: int) -> str | None:
    count = len(text.split())
    return f"{count} words, more than {most}" if count > most else None


def _repeats_lines(text: str, most: float) -> str | None:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    repeated = len(lines) - len(set(lines))
    share = repeated / len(lines) if lines else 0.0
    return f"{share:.0%} of its lines repeat an earlier one" if share > most else None


def _repeats_words(text: str, most: float) -> str | None:
    words = text.casefold().split()
    if len(words) < 20:
        return None  # too short for a share to mean anything
    grams = Counter(zip(words, words[1:], words[2:], words[3:], words[4:], strict=False))
    total = len(words) - 4
    share = (total - len(grams)) / total
    return f"{share:.0%} of its 5-word sequences repeat an earlier one" if share > most else None


_REFUSAL = re.compile(
    r"\bas an ai (?:language )?model\b"
    r"|\bi(?:'m| am) (?:very |really |so )?(?:sorry|unable|not able)\b[^.\n]{0,40}"
    r"\b(?:can(?:'t|not)|unable|not able|won't|to (?:assist|help|answer|provide|comply))\b"
    r"|\bi (?:can(?:'t|not)|won't|must decline to|am not able to) "
    r"(?:assist|help|comply|provide|fulfil|fulfill|answer|discuss|do that)\b"
)
_REFUSAL_CHARACTERS = 300


def _refuses(label: Label) -> str | None:
    """Looks at the start only: a rationale may well quote a refusal further on."""
    for text in (label.answer or "", label.reasoning or ""):
        found = _REFUSAL.search(text[:_REFUSAL_CHARACTERS].casefold().replace("\u2019", "'"))
        if found:
            return f"declines: {found[0]!r}"
    return None


_RESIDUE = re.compile(
    r"<\|(?:im_start|im_end|endoftext|eot_id|start_header_id|end_header_id|assistant|user|system)\|>"
    r"|\[/?INST\]|<</?SYS>>|\[(?:your|insert|enter) [^\]\n]{1,40}\]|\blorem ipsum\b|\{\{\s*\w+\s*\}\}",
    re.IGNORECASE,
)


def _has_residue(label: Label) -> str | None:
    text = _text(label)
    if not any(sign in text for sign in "<[{") and "lorem" not in text.casefold():
        return None
    found = _RESIDUE.search(text)
    return f"has {found[0]!r}" if found else None


_STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
_ENDINGS = (".", "!", "?", '"', "'", "\u201d", "\u2026")


def _odd_word_length(label: Label) -> str | None:
    words = _text(label).split()
    mean = sum(map(len, words)) / len(words) if words else 0.0
    return None if 3 <= mean <= 10 else f"words of {mean:.1f} characters"


def _symbols(label: Label) -> str | None:
    text = _text(label)
    share = (text.count("#") + text.count("...") + text.count("\u2026")) / max(1, len(text.split()))
    return f"{share:.0%} as many symbols as words" if share > 0.1 else None


def _few_letters(label: Label) -> str | None:
    words = _text(label).split()
    share = sum(any(c.isalpha() for c in word) for word in words) / max(1, len(words))
    return f"only {share:.0%} of its words have a letter" if share < 0.8 else None


def _no_stop_words(label: Label) -> str | None:
    found = _STOP_WORDS & set(_text(label).casefold().split())
    return None if len(found) >= 2 else "fewer than two of the commonest English words"


def _curly(label: Label) -> str | None:
    return "has a curly bracket" if "{" in _text(label) else None


def _no_sentences(label: Label) -> str | None:
    lines = [line.strip() for line in _text(label).splitlines() if line.strip()]
    share = sum(line.endswith(_ENDINGS) for line in lines) / max(1, len(lines))
    return f"only {share:.0%} of its lines end a sentence" if share < 0.12 else None


def _short_lines(label: Label) -> str | None:
    lines = [line.strip() for line in _text(label).splitlines() if line.strip()]
    share = sum(len(line) < 30 for line in lines) / max(1, len(lines))
    return f"{share:.0%} of its lines are short" if share > 0.67 else None


_WEB: tuple[tuple[str, str, Callable[[Label], str | None]], ...] = (
    ("web_word_length", "mean word length outside 3 to 10 (Gopher)", _odd_word_length),
    ("web_symbols", "symbols above 10 % of the words (Gopher)", _symbols),
    ("web_letters", "fewer than 80 % of the words have a letter (Gopher)", _few_letters),
    ("web_stop_words", "no running English text (Gopher)", _no_stop_words),
    ("web_curly", "curly brackets (C4)", _curly),
    ("web_sentences", "fewer than 12 % of the lines end a sentence (FineWeb)", _no_sentences),
    ("web_short_lines", "more than 67 % of the lines are short (FineWeb)", _short_lines),
)
