"""Which language a label is written in, by py3langid, whose model comes with it: nothing is downloaded."""

import importlib
import re
from collections.abc import Callable, Collection
from functools import lru_cache
from typing import Any

from decant.errors import ConfigError, MissingExtraError
from decant_distill.labels import Label

_LEAST_LETTERS = 25
_LEAST_SHARE = 0.6
_SURE = 0.6
_READ_CHARACTERS = 2000
_NOT_LANGUAGE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+|[\w.+-]+@[\w.-]+", re.DOTALL)


def language_rule(languages: Collection[str]) -> Callable[[Label], str | None]:
    """Says why a label's reasoning and answer are in none of these languages, or None.

    Texts with few letters are no language to judge by: arithmetic, codes and single words pass, and so does
    what the identifier is not sure of. Code and addresses are left out. ConfigError for an unknown language.
    """
    identify, known = known_language()
    unknown = sorted(set(languages) - known)
    if unknown:
        raise ConfigError(f"text.languages: {', '.join(unknown)}: give two-letter codes such as en, de or zh")

    def reason(label: Label) -> str | None:
        text = _prose(f"{label.reasoning or ''}\n{label.answer or ''}")
        if text is None:
            return None
        language, probability = identify(text)
        if language in languages or probability < _SURE:
            return None
        return f"written in {language} (probability {probability:.2f})"

    return reason


def _prose(text: str) -> str | None:
    prose = " ".join(_NOT_LANGUAGE.sub(" ", text[:_READ_CHARACTERS]).split())
    letters = sum(map(str.isalpha, prose))
    written = len(prose) - prose.count(" ")
    # A Chinese word has a character or two where a Latin one has five.
    wide = 0 if prose.isascii() else sum(character > "\u2e7f" for character in prose)
    is_much = letters + 3 * wide >= _LEAST_LETTERS
    return prose if is_much and letters >= _LEAST_SHARE * written else None


@lru_cache(maxsize=1)
def known_language() -> tuple[Callable[[str], tuple[str, float]], frozenset[str]]:
    """The identifier, and the languages it knows; MissingExtraError without py3langid."""
    try:
        # It has no types, and is needed by nothing else here.
        langid: Any = importlib.import_module("py3langid.langid")
    except ImportError:
        raise MissingExtraError("py3langid", "curate") from None
    identifier = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE, norm_probs=True)

    def identify(text: str) -> tuple[str, float]:
        language, probability = identifier.classify(text)
        return str(language), float(probability)

    return identify, frozenset(map(str, identifier.labels))
