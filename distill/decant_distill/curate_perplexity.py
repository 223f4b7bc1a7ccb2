"""How odd a text is among its like: its perplexity under a word-bigram model of the other labels.

The model is an interpolated bigram with Witten-Bell weights (Chen and Goodman, 1996, section 2.4) over
hashed, case-folded words. Two are made, each on the prompts of one half, and a text is read by the one that
never saw its prompt. It says what is unusual here, nothing of what is good: garbled text and foreign matter
stand high, text that repeats itself stands low.
"""

from collections.abc import Iterable, Sequence
from math import exp

import numpy as np
from numpy.typing import NDArray

from decant.errors import DataError
from decant_distill.curate_rules import Candidate, Drop, Rule, accepted
from decant_distill.curate_texts import Texts, folds, written
from decant_distill.minhash import Hashes, Shingler

LEAST_LABELS = 100
_START = np.uint64(0x9E3779B97F4A7C15)
_ODD = np.uint64(0xBF58476D1CE4E5B9)

Counts = NDArray[np.int64]


def perplexity_rule(texts: Texts, *, highest: float | None, lowest: float | None, seed: int) -> Rule:
    """Drops the labels above one percentile of perplexity and below another.

    DataError for fewer than 100 labels, of which no percentile says anything.
    """

    def drops(candidates: Sequence[Candidate]) -> Iterable[Drop]:
        if len(candidates) < LEAST_LABELS:
            raise DataError(
                f"a percentile of perplexity needs {LEAST_LABELS} labels and {len(candidates)} are left; "
                "leave max_perplexity_percentile and min_perplexity_percentile out"
            )
        lines, perplexities = _perplexities(texts, candidates, seed=seed)
        ceiling = np.percentile(perplexities, highest) if highest is not None else np.inf
        floor = np.percentile(perplexities, lowest) if lowest is not None else 0.0
        for line, perplexity in zip(lines, perplexities.tolist(), strict=True):
            if perplexity > ceiling:
                yield Drop(line, f"perplexity {perplexity:.0f}, above {ceiling:.0f}")
            elif perplexity < floor:
                yield Drop(line, f"perplexity {perplexity:.1f}, below {floor:.1f}")

    bounds = [f"above percentile {highest:g}"] if highest is not None else []
    bounds += [f"below percentile {lowest:g}"] if lowest is not None else []
    return Rule("perplexity", f"perplexity {' or '.join(bounds)}", drops, spares=accepted)


class WordModel:
    """Word and word-pair counts of some texts, looked up by hash."""

    def __init__(self, texts: Sequence[Hashes]) -> None:
        words = np.concatenate([np.empty(0, dtype=np.uint64), *texts])
        before = np.concatenate([np.empty(0, dtype=np.uint64), *(_before(text) for text in texts)])
        self._words, self._word_counts = np.unique(words, return_counts=True)
        pairs, first, counts = np.unique(_pair(before, words), return_index=True, return_counts=True)
        self._pairs, self._pair_counts = pairs, counts
        # How often a word comes before another, and how many different words follow it.
        self._contexts, place = np.unique(before[first], return_inverse=True)
        self._context_counts = np.bincount(place, weights=counts).astype(np.int64)
        self._followers = np.bincount(place).astype(np.int64)
        self._total = len(words)

    def perplexity(self, text: Hashes) -> float:
        """exp of the mean negative log-probability of the words; 1 for a text without any."""
        if len(text) == 0:
            return 1.0
        before = _before(text)
        # One of every so many words is new; all new words share that.
        word = (_found(self._words, self._word_counts, text) + 1.0) / (self._total + len(self._words) + 1.0)
        pair = _found(self._pairs, self._pair_counts, _pair(before, text))
        seen = _found(self._contexts, self._context_counts, before)
        followers = _found(self._contexts, self._followers, before)
        mass = np.maximum(seen + followers, 1)
        share = np.where(seen > 0, (pair + followers * word) / mass, word)
        return exp(-float(np.log(share).mean()))


def _perplexities(
    texts: Texts, candidates: Sequence[Candidate], *, seed: int
) -> tuple[list[int], NDArray[np.float64]]:
    half_of = folds(candidates, 2, seed=seed)
    shingler = Shingler(1)
    lines: list[int] = []
    hashed: list[Hashes] = []
    for line, label in texts.of(half_of):
        lines.append(line)
        hashed.append(shingler.hashes(written(label), whole=False))
    models = [WordModel(half) for half in _halves(lines, hashed, half_of)] if lines else []
    found = [models[1 - half_of[line]].perplexity(text) for line, text in zip(lines, hashed, strict=True)]
    return lines, np.array(found)


def _halves(
    lines: list[int], hashed: list[Hashes], half_of: dict[int, int]
) -> tuple[list[Hashes], list[Hashes]]:
    halves: tuple[list[Hashes], list[Hashes]] = ([], [])
    for line, text in zip(lines, hashed, strict=True):
        halves[half_of[line]].append(text)
    return halves


def _before(text: Hashes) -> Hashes:
    return np.concatenate([np.array([_START]), text[:-1]]) if len(text) else text


def _pair(before: Hashes, words: Hashes) -> Hashes:
    return before * _ODD + words


def _found(keys: Hashes, counts: Counts, wanted: Hashes) -> Counts:
    if len(keys) == 0:
        return np.zeros(len(wanted), dtype=np.int64)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, counts[place], 0)
