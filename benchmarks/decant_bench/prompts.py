"""Synthetic prompts: plain words, drawn by a seed, exactly as many tokens long as asked for."""

from collections.abc import Sequence

import numpy as np

from decant.errors import DataError
from decant_bench.tokens import TokenCounter

# Short and common, so that most tokenizers have one token for each.
_TEXT = """
the of and to in is for on that by this with you it not or be are from at as your all have new
more an was we will home can us about if page my has search free but our one other do no time they
site up what which their out use any there see only so his when here who also now help get first
been would how were some these click its like than find price date back top people list name just
over state year day into email two world next used work last most data make them should product
system post city add policy number such please support message after best software then good video
well where info rights public book school
"""
_WORDS = _TEXT.split()
_FILLERS = ("a", "1", ".", ",", "x", "?")
_MOST_TRIES = 200


class PromptWriter:
    """Writes texts of an exact length in the counter's unit."""

    def __init__(self, counter: TokenCounter) -> None:
        self._counter = counter

    def write(self, length: int, rng: np.random.Generator, *, after: str = "") -> str:
        """A text of `length` in all that starts with `after`; DataError when there is none."""
        words = [after] if after else []
        have = self._counter.count(after) if after else 0
        for _ in range(_MOST_TRIES):
            lacking = length - have
            if lacking == 0:
                return " ".join(words)
            words = self._nearer(words, lacking, rng, keep=1 if after else 0)
            have = self._counter.count(" ".join(words))
        raise DataError(f"found no text of exactly {length} {self._counter.unit} for this tokenizer")

    def _nearer(self, words: list[str], lacking: int, rng: np.random.Generator, *, keep: int) -> list[str]:
        if lacking < 0:
            return words[: max(keep, len(words) + min(-1, lacking // 2))]
        if lacking > 4:
            # A word may be several tokens: half of what lacks never overshoots by much.
            number = lacking if self._counter.unit == "words" else max(1, lacking // 2)
            return words + [str(word) for word in rng.choice(_WORDS, number)]
        choice: Sequence[str] = _WORDS if rng.random() < 0.5 else _FILLERS
        return [*words, str(rng.choice(choice))]
