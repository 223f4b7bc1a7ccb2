"""A smaller set of prompts that still reaches everywhere: greedy k-centers over TF-IDF, block by block.

Gonzalez, "Clustering to minimize the maximum intercluster distance" (1985), gives at most twice the best
radius within a block. Blocks of near texts come from a random-projection tree (Dasgupta and Freund, 2008), so
that for a fixed share the work grows linearly. k-centers favours what is unusual: drop bad labels first.
"""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from decant_distill.curate_rules import Candidate, Drop, Rule
from decant_distill.curate_texts import Texts
from decant_distill.minhash import Hashes, Shingler

_BLOCK = 1024
_BITS = 64

Vectors = NDArray[np.float32]


def diversity_rule(texts: Texts, *, prompts: int, seed: int) -> Rule:
    """Keeps all labels of so many prompts that are as unlike each other as can be."""

    def drops(candidates: Sequence[Candidate]) -> Iterable[Drop]:
        lines: dict[bytes, int] = {}
        for one in candidates:
            lines.setdefault(one.question or b"", one.line)
        if len(lines) <= prompts:
            return
        shingler = Shingler(1)
        by_line = {line: question for question, line in lines.items()}
        questions: list[bytes] = []
        hashed: list[Hashes] = []
        for line, label in texts.of(by_line):
            questions.append(by_line[line])
            hashed.append(np.unique(shingler.hashes(label.question)))
        chosen = {questions[place] for place in select(project(hashed, seed=seed), prompts, seed=seed)}
        for one in candidates:
            if (one.question or b"") not in chosen:
                yield Drop(one.line, f"other prompts stand for it among the {prompts} that are kept")

    return Rule("diversity", f"not among the {prompts} prompts that reach furthest", drops)


def project(texts: Sequence[Hashes], *, seed: int) -> Vectors:
    """TF-IDF of hashed words in 64 random directions, one row a text, each of length 1 (Charikar, 2002)."""
    words, counts = np.unique(np.concatenate(texts), return_counts=True)
    weight = np.log((1 + len(texts)) / (1 + counts)).astype(np.float32) + 1
    salt = np.uint64(int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=8).digest()) | 1)
    vectors_ND = np.empty((len(texts), _BITS), dtype=np.float32)
    for row, text in enumerate(texts):
        bits = np.unpackbits((text * salt).byteswap().view(np.uint8).reshape(-1, 8), axis=1)
        signs_WD = bits.astype(np.float32) * 2 - 1
        vectors_ND[row] = weight[np.searchsorted(words, text)] @ signs_WD
    length_N = np.linalg.norm(vectors_ND, axis=1, keepdims=True)
    return vectors_ND / np.maximum(length_N, 1e-9)


def select(vectors_ND: Vectors, count: int, *, seed: int) -> list[int]:
    """The rows that are kept, in order; the same for the same rows and seed."""
    generator = np.random.default_rng(seed)
    blocks = _blocks(vectors_ND, np.arange(len(vectors_ND)), generator)
    sizes = np.array([len(block) for block in blocks])
    # Largest remainders: the shares sum to the count.
    exact = sizes * count / sizes.sum()
    taken = np.minimum(np.floor(exact).astype(int), sizes)
    for place in np.argsort(-(exact - taken), kind="stable")[: count - int(taken.sum())]:
        taken[place] += 1
    chosen = [
        block[place]
        for block, size in zip(blocks, taken.tolist(), strict=True)
        for place in _centers(vectors_ND[block], size)
    ]
    return sorted(int(row) for row in chosen)


def _blocks(
    vectors_ND: Vectors, rows: NDArray[np.int64], generator: np.random.Generator
) -> list[NDArray[np.int64]]:
    if len(rows) <= _BLOCK:
        return [rows]
    size = int(vectors_ND.shape[1])
    direction_D: NDArray[np.float32] = generator.standard_normal(size, dtype=np.float32)
    order = rows[np.argsort(vectors_ND[rows] @ direction_D, kind="stable")]
    half = len(order) // 2
    return [
        *_blocks(vectors_ND, order[:half], generator),
        *_blocks(vectors_ND, order[half:], generator),
    ]


def _centers(vectors_ND: Vectors, count: int) -> list[int]:
    """Greedy k-centers by cosine, beginning with the row that is nearest to the mean."""
    if count == 0:
        return []
    chosen = [int(np.argmax(vectors_ND @ vectors_ND.mean(axis=0)))]
    nearest_N = vectors_ND @ vectors_ND[chosen[0]]
    nearest_N[chosen[0]] = np.inf
    while len(chosen) < count:
        furthest = int(np.argmin(nearest_N))
        chosen.append(furthest)
        np.maximum(nearest_N, vectors_ND @ vectors_ND[furthest], out=nearest_N)
        nearest_N[furthest] = np.inf
    return chosen
