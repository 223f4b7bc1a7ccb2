"""The order of a whole run, fixed before it starts: batch i is the same rows whenever it is asked for."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

# Rows are sorted by length within pools of about this many batches: enough for little padding, few enough
# that which rows meet in a batch still changes from epoch to epoch.
_POOL_BATCHES = 32


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """Row numbers of every batch of a run.

    `tokens` counts each batch's real tokens, `padded` what the model computes on for it, `parts` into how
    many the ramp cut the batch that it comes from (1 behind the ramp). A run takes the first `steps`; behind
    them stand spares, for batches that are left out.
    """

    batches: tuple[tuple[int, ...], ...]
    tokens: tuple[int, ...]
    padded: tuple[int, ...]
    parts: tuple[int, ...]
    steps: int

    @property
    def total_tokens(self) -> int:
        """Tokens of the whole run, padding left out."""
        return sum(self.tokens[: self.steps])

    @property
    def padded_tokens(self) -> int:
        """Tokens that the model computes on in the whole run."""
        return sum(self.padded[: self.steps])

    def tokens_before(self, batch: int) -> int:
        """Tokens of all batches before this one."""
        return sum(self.tokens[:batch])

    def without(self, stretches: Sequence[tuple[int, int]]) -> "BatchPlan":
        """The plan of as many steps that leaves out these stretches [start, stop) of batches.

        As many spares as batches left out must be there.
        """
        gone = {index for start, stop in stretches for index in range(start, stop)}
        kept = [index for index in range(len(self.batches)) if index not in gone][: self.steps]
        assert len(kept) == self.steps
        return BatchPlan(
            batches=tuple(self.batches[index] for index in kept),
            tokens=tuple(self.tokens[index] for index in kept),
            padded=tuple(self.padded[index] for index in kept),
            parts=tuple(self.parts[index] for index in kept),
            steps=self.steps,
        )


@dataclass(frozen=True, slots=True)
class Ramp:
    """Small batches first: cut into `parts` (a power of 2), half as many after each stretch of `tokens`.

    Small batches make more of early tokens, large ones of later: PaLM doubled its batches twice on the way
    (arXiv 2204.02311, section 5). Cutting batches that are planned already leaves the order as it is.
    """

    parts: int = 1
    tokens: int = 0

    def parts_at(self, spent: int) -> int:
        """Into how many parts a batch is cut when so many tokens are spent."""
        if spent >= self.tokens or self.parts == 1:
            return 1
        halvings = spent * (self.parts.bit_length() - 1) // self.tokens
        return self.parts >> halvings


NO_RAMP = Ramp()


def plan_batches(
    lengths: Sequence[int],
    *,
    token_budget: int,
    batch_tokens: int,
    seed: int,
    bucketing: bool = True,
    ramp: Ramp = NO_RAMP,
    spares: int = 0,
) -> BatchPlan:
    """Shuffled epochs cut into batches of at most `batch_tokens` (rows x longest) until the budget is spent.

    The batch that reaches `token_budget` is the last, so that runs over different rows spend the same tokens
    to within one batch. A row longer than `batch_tokens` gets a batch of its own. `spares` more follow.
    """
    assert lengths
    assert token_budget > 0
    sizes = np.asarray(lengths, dtype=np.int64)
    batches: list[NDArray[np.int64]] = []
    parts: list[int] = []
    spent = steps = 0
    for batch, cut in _ramped(_endless(sizes, batch_tokens, seed, bucketing), sizes, ramp):
        if steps and len(batches) == steps + spares:
            break
        batches.append(batch)
        parts.append(cut)
        spent += int(sizes[batch].sum())
        if not steps and spent >= token_budget:
            steps = len(batches)
    return BatchPlan(
        batches=tuple(tuple(int(row) for row in batch) for batch in batches),
        tokens=tuple(int(sizes[batch].sum()) for batch in batches),
        padded=tuple(int(sizes[batch].max()) * len(batch) for batch in batches),
        parts=tuple(parts),
        steps=steps,
    )


def _ramped(
    batches: Iterable[NDArray[np.int64]], sizes: NDArray[np.int64], ramp: Ramp
) -> Iterator[tuple[NDArray[np.int64], int]]:
    """The batches as the ramp cuts them, each with the number of parts that were asked for."""
    spent = 0
    for batch in batches:
        cut = ramp.parts_at(spent)
        spent += int(sizes[batch].sum())
        for part in np.array_split(batch, min(cut, len(batch))):
            yield part, cut


def _endless(
    sizes: NDArray[np.int64], batch_tokens: int, seed: int, bucketing: bool
) -> Iterator[NDArray[np.int64]]:
    for epoch in count():
        generator = np.random.default_rng([seed, epoch])
        order = generator.permutation(len(sizes))
        batches = [
            batch
            for pool in _pools(order, sizes, batch_tokens, bucketing)
            for batch in _cut(pool, sizes, batch_tokens)
        ]
        yield from (batches[i] for i in generator.permutation(len(batches)))


def _pools(
    order: NDArray[np.int64], sizes: NDArray[np.int64], batch_tokens: int, bucketing: bool
) -> Iterator[NDArray[np.int64]]:
    if not bucketing:
        yield order
        return
    pool_of_row = np.cumsum(sizes[order]) // (batch_tokens * _POOL_BATCHES)
    for number in range(int(pool_of_row[-1]) + 1):
        pool = order[pool_of_row == number]
        yield pool[np.argsort(sizes[pool], kind="stable")]


def _cut(pool: NDArray[np.int64], sizes: NDArray[np.int64], batch_tokens: int) -> Iterator[NDArray[np.int64]]:
    start = 0
    while start < len(pool):
        ahead = sizes[pool[start : start + batch_tokens]]
        padded = np.maximum.accumulate(ahead) * np.arange(1, len(ahead) + 1)
        stop = start + max(int(np.searchsorted(padded, batch_tokens, side="right")), 1)
        yield pool[start:stop]
        start = stop
