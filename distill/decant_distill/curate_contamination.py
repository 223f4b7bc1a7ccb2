"""Whether a prompt overlaps with an evaluation set: by a shared run of words, or by MinHash as a whole."""

from collections.abc import Iterable
from typing import ClassVar

from decant_distill.minhash import MinHasher, NearDuplicates, Shingler, Signature, ngram_hashes, shared_ngram

_SHOWN_CHARACTERS = 120


class Contamination:
    """The prompts of an evaluation set, ready to be compared with; what is not asked for is not compared."""

    RULE: ClassVar[str] = "decontamination_overlap"

    def __init__(self, prompts: Iterable[str], *, ngram: int | None, similarity: float | None) -> None:
        texts = list(prompts)
        self._words = ngram or 0
        self._shingler = Shingler(ngram) if ngram else None
        self._ngrams = ngram_hashes(texts, ngram) if ngram else frozenset[int]()
        self._hasher = MinHasher() if similarity is not None else None
        self._index = NearDuplicates(similarity) if similarity is not None else None
        if self._hasher is not None and self._index is not None:
            for text in texts:
                self._index.keep(self._hasher.signature(text))

    def overlap(self, prompt: str, signature: Signature | None) -> str | None:
        """What a prompt shares with the evaluation set, or None; its `signature` where it is known."""
        if self._shingler is not None:
            place = shared_ngram(prompt, self._shingler, self._ngrams)
            if place is not None:
                words = " ".join(prompt.split()[place : place + self._words])
                return f"{self._words} words also stand in the evaluation set: {words[:_SHOWN_CHARACTERS]!r}"
        if self._hasher is not None and self._index is not None:
            near = self._index.find(self._hasher.signature(prompt) if signature is None else signature)
            if near is not None:
                return f"{near[1]:.0%} like prompt {near[0] + 1} of the evaluation set"
        return None
