"""Near-duplicate texts by MinHash: vectorised signatures, bands that find candidates, first come first kept.

Broder, "On the resemblance and containment of documents" (1997); bands as in Leskovec, Rajaraman and Ullman,
"Mining of Massive Datasets", chapter 3.
"""

import hashlib
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

PERMUTATIONS = 128
_SHINGLE_WORDS = 3
_SURE = 0.99
_WORDS_KEPT = 1_000_000

Hashes = NDArray[np.uint64]
Signature = NDArray[np.uint32]


class _WordHashes(dict[str, int]):
    """Each word's hash, computed when it is first met."""

    def __missing__(self, word: str) -> int:
        digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        hashed = self[word] = int.from_bytes(digest)
        return hashed


class Shingler:
    """Hashes the word n-grams of texts; case, Unicode form and white space do not count."""

    def __init__(self, words: int = _SHINGLE_WORDS) -> None:
        self._words = words
        self._known = _WordHashes()
        # Odd factors, so that a product loses nothing modulo 2**64; the order of the words counts.
        generator = np.random.default_rng(0)
        self._factors = generator.integers(1, 2**63, size=words, dtype=np.uint64) | np.uint64(1)

    def hashes(self, text: str, *, whole: bool = True) -> Hashes:
        """One hash per n-gram. A shorter text is one n-gram of its own with `whole`, and none without."""
        words = unicodedata.normalize("NFKC", text).casefold().split()
        if len(words) < self._words and not whole:
            return np.empty(0, dtype=np.uint64)
        if len(self._known) > _WORDS_KEPT:
            self._known.clear()
        hashed = np.fromiter(map(self._known.__getitem__, words), dtype=np.uint64, count=len(words))
        width = min(self._words, max(len(words), 1))
        count = len(words) - width + 1
        mixed = np.zeros(max(count, 1), dtype=np.uint64)
        for place in range(width if words else 0):
            mixed += hashed[place : place + count] * self._factors[place]
        return _mix(mixed)


def _mix(values: Hashes) -> Hashes:
    """The finaliser of SplitMix64: neighbouring sums become unrelated hashes."""
    values ^= values >> np.uint64(30)
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


class MinHasher:
    """Signatures of K minima; the share of equal ones estimates the Jaccard similarity of two texts."""

    def __init__(self, permutations: int = PERMUTATIONS) -> None:
        generator = np.random.default_rng(1)
        self._shingler = Shingler()
        self._a = generator.integers(1, 2**63, size=permutations, dtype=np.uint64) * np.uint64(2) + np.uint64(
            1
        )
        self._b = generator.integers(0, 2**63, size=permutations, dtype=np.uint64)

    def signature(self, text: str) -> Signature:
        """K values of 32 bits."""
        shingles_S1 = self._shingler.hashes(text)[:, None]
        # Multiply-shift hashing (Dietzfelbinger et al., 1997): the upper half of a product is near random.
        hashed_SK = (shingles_S1 * self._a + self._b) >> np.uint64(32)
        return hashed_SK.min(axis=0).astype(np.uint32)


def similarity(left: Signature, right: Signature) -> float:
    """The estimated Jaccard similarity; its standard error is at most 0.05 with 128 values."""
    return float(np.count_nonzero(left == right)) / left.size


def bands_for(threshold: float, permutations: int = PERMUTATIONS) -> int:
    """The fewest bands with which a pair at the threshold shares one nearly surely."""
    for rows in (32, 16, 8, 4, 2):
        bands = permutations // rows
        if 1 - (1 - threshold**rows) ** bands >= _SURE:
            return bands
    return permutations


class NearDuplicates:
    """Finds, among texts that were kept, one that a new text is nearly equal to."""

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._bands = bands_for(threshold)
        self._kept: list[Signature] = []
        self._buckets: dict[bytes, list[int]] = {}

    def find(self, signature: Signature) -> tuple[int, float] | None:
        """The number of the most similar kept text and its similarity, if that reaches the threshold."""
        near = {one for name in self._names(signature) for one in self._buckets.get(name, ())}
        scored = [(similarity(self._kept[one], signature), -one) for one in near]
        share, number = max(scored, default=(0.0, 0))
        return (-number, share) if scored and share >= self._threshold else None

    def keep(self, signature: Signature) -> int:
        """Keeps a text; returns its number, counted from 0."""
        number = len(self._kept)
        self._kept.append(signature)
        for name in self._names(signature):
            self._buckets.setdefault(name, []).append(number)
        return number

    def _names(self, signature: Signature) -> Iterator[bytes]:
        rows = len(signature) // self._bands
        packed = signature.tobytes()
        width = 4 * rows
        return (band.to_bytes(2) + packed[band * width : (band + 1) * width] for band in range(self._bands))


def ngram_hashes(texts: Iterable[str], words: int) -> frozenset[int]:
    """The hashes of all word n-grams of some texts; a text shorter than that has none."""
    shingler = Shingler(words)
    return frozenset(value for text in texts for value in shingler.hashes(text, whole=False).tolist())


def shared_ngram(text: str, shingler: Shingler, known: frozenset[int]) -> int | None:
    """Where the first n-gram of a text that is also in `known` starts, in words; None when there is none."""
    values: Sequence[int] = shingler.hashes(text, whole=False).tolist()
    if known.isdisjoint(values):
        return None
    return next((place for place, value in enumerate(values) if value in known), None)
