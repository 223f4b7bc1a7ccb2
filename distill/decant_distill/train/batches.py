"""The order of a whole run, fixed before it starts: batch i is the same rows whenever it is asked for."""

from collections.abc import Iterator, Sequence
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

    `tokens` counts each batch's real tokens, `padded_tokens` what the model computes on in all of them.
    """

    batches: tuple[tuple[int, ...], ...]
    tokens: tuple[int, ...]
    padded_tokens: int

    @property
    def total_tokens(self) -> int:
        """Tokens of the whole run, padding left out."""
        return sum(self.tokens)

    def tokens_before(self, batch: int) -> int:
        """Tokens of all batches before this one."""
        return sum(self.tokens[:batch])


def plan_batches(
    lengths: Sequence[int], *, token_budget: int, batch_tokens: int, seed: int, bucketing: bool = True
) -> BatchPlan:
    """Shuffled epochs cut into batches of at most `batch_tokens` (rows x longest) until the budget is spent.

    The batch that reaches `token_budget` is the last, so that runs over different rows spend the same tokens
    to within one batch. A row longer than `batch_tokens` gets a batch of its own.
    """
    assert lengths
    assert token_budget > 0
    sizes = np.asarray(lengths, dtype=np.int64)
    batches: list[NDArray[np.int64]] = []
    tokens: list[int] = []
    spent = 0
    for batch in _endless(sizes, batch_tokens, seed, bucketing):
        batches.append(batch)
        tokens.append(int(sizes[batch].sum()))
        spent += tokens[-1]
        if spent >= token_budget:
            break
    return BatchPlan(
        batches=tuple(tuple(int(row) for row in batch) for batch in batches),
        tokens=tuple(tokens),
        padded_tokens=sum(int(sizes[batch].max()) * len(batch) for batch in batches),
    )


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
