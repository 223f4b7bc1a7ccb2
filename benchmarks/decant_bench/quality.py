"""The quality of stages on the same requests: accuracy, agreement with the teacher, paired differences.

Stages are joined by request id, and every number is over the requests that all of them were asked. A failed
request stands for a wrong answer that agrees with nobody.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from decant.errors import DataError
from decant.stats import Interval, PairedDifference, paired_difference, wilson
from decant.task import same_answer
from decant_bench.predictions import Prediction, PredictionFolder

Basis = Literal["accuracy", "agreement"]

_MOST_BUCKETS = 12
_QUANTILE_BUCKETS = 8


@dataclass(frozen=True, slots=True)
class Proportion:
    """A share with its 95 % Wilson interval."""

    value: float
    interval: Interval
    successes: int
    n: int


@dataclass(frozen=True, slots=True)
class Difference:
    """A stage minus its parent, request by request, in accuracy or in agreement with the teacher."""

    to: str
    basis: Basis
    paired: PairedDifference


@dataclass(frozen=True, slots=True)
class LengthBucket:
    """The accuracy (agreement, where there is no gold) on the requests of one length or range of lengths."""

    group: str | None
    low: float
    high: float
    share: Proportion


@dataclass(frozen=True, slots=True)
class Joined:
    """Stages joined by request id.

    `graded` are the ids that every stage has a verdict on, `answered` those that the teacher answered.
    `missing` counts per stage the requests that others were asked and it was not.
    """

    teacher: str
    predictions: Mapping[str, Mapping[str, Prediction]]
    ids: tuple[str, ...]
    graded: tuple[str, ...]
    answered: tuple[str, ...]
    missing: Mapping[str, int]

    @property
    def basis(self) -> Basis:
        """What stages are compared by: accuracy, or agreement with the teacher where nothing is graded."""
        return "accuracy" if self.graded else "agreement"

    @property
    def compared(self) -> tuple[str, ...]:
        """The ids that the comparison is over."""
        return self.graded or self.answered

    def outcomes(self, stage: str, ids: Sequence[str], basis: Basis) -> list[int]:
        """1 for each request that the stage got right, or answered as the teacher did; else 0."""
        rows = self.predictions[stage]
        if basis == "accuracy":
            return [int(rows[request_id].correct is True) for request_id in ids]
        teacher = self.predictions[self.teacher]
        return [int(_agree(rows[request_id], teacher[request_id])) for request_id in ids]


def join(folders: Mapping[str, PredictionFolder], *, teacher: str) -> Joined:
    """Joins the stages by request id; DataError when they share none, or disagree on what is true."""
    predictions = {name: {p.id: p for p in folder.predictions} for name, folder in folders.items()}
    everything = dict.fromkeys(p.id for folder in folders.values() for p in folder.predictions)
    ids = tuple(i for i in everything if all(i in rows for rows in predictions.values()))
    if not ids:
        raise DataError(
            f"the stages {', '.join(folders)} share no request id; replay the same dataset for each"
        )
    for request_id in ids:
        _check_gold(request_id, {name: rows[request_id].gold for name, rows in predictions.items()})
    graded = tuple(i for i in ids if all(rows[i].correct is not None for rows in predictions.values()))
    answered = tuple(i for i in ids if predictions[teacher][i].answer is not None)
    missing = {name: len(everything) - len(rows) for name, rows in predictions.items()}
    if not graded and not answered:
        raise DataError(
            f"no shared request has gold, and the teacher {teacher} answered none: nothing can be compared"
        )
    return Joined(teacher, predictions, ids, graded, answered, missing)


def accuracy(joined: Joined, stage: str) -> Proportion | None:
    """The share of graded requests that the stage got right; None without gold."""
    return proportion(joined.outcomes(stage, joined.graded, "accuracy")) if joined.graded else None


def agreement(joined: Joined, stage: str) -> Proportion | None:
    """The share of what the teacher answered that the stage answers alike; None for the teacher itself."""
    if stage == joined.teacher or not joined.answered:
        return None
    return proportion(joined.outcomes(stage, joined.answered, "agreement"))


def difference(joined: Joined, stage: str, *, parent: str, seed: int) -> Difference:
    """The paired difference of a stage to its parent."""
    before = joined.outcomes(parent, joined.compared, joined.basis)
    after = joined.outcomes(stage, joined.compared, joined.basis)
    return Difference(parent, joined.basis, paired_difference(before, after, seed=seed))


def by_length(joined: Joined, stage: str) -> list[LengthBucket]:
    """The stage's outcomes by problem length, per group; empty where the requests have no numeric length."""
    described = joined.predictions[joined.teacher]
    groups = dict.fromkeys(described[i].group for i in joined.compared)
    buckets: list[LengthBucket] = []
    for group in groups:
        ids = {i: length for i in joined.compared if (length := _length(described[i], group)) is not None}
        for low, high in _ranges(list(ids.values())):
            inside = [i for i, length in ids.items() if low <= length <= high]
            share = proportion(joined.outcomes(stage, inside, joined.basis))
            buckets.append(LengthBucket(group, low, high, share))
    return buckets


def proportion(outcomes: Sequence[int]) -> Proportion:
    """The share of ones."""
    successes, n = sum(outcomes), len(outcomes)
    return Proportion(successes / n, wilson(successes, n), successes, n)


def _agree(prediction: Prediction, teacher: Prediction) -> bool:
    if prediction.answer is None or teacher.answer is None:
        return False
    return same_answer(prediction.answer, teacher.answer)


def _check_gold(request_id: str, golds: Mapping[str, str | None]) -> None:
    known = {stage: gold for stage, gold in golds.items() if gold is not None}
    first = next(iter(known.items()), None)
    for stage, gold in known.items():
        if first is not None and not same_answer(gold, first[1]):
            raise DataError(
                f"request {request_id}: gold is {first[1]!r} for stage {first[0]} and {gold!r} for {stage};"
                " the stages were not asked the same dataset, replay them again"
            )


def _length(prediction: Prediction, group: str | None) -> float | None:
    length = prediction.length
    if prediction.group != group or not isinstance(length, int | float) or not math.isfinite(length):
        return None
    return float(length)


def _ranges(lengths: Sequence[float]) -> list[tuple[float, float]]:
    """Each length on its own while they are few, else ranges that hold about as many requests each."""
    distinct = sorted(set(lengths))
    if len(distinct) <= _MOST_BUCKETS:
        return [(length, length) for length in distinct]
    ordered = sorted(lengths)
    cuts = [ordered[len(ordered) * k // _QUANTILE_BUCKETS] for k in range(_QUANTILE_BUCKETS)]
    starts = sorted(set(cuts))
    ends = [max(length for length in distinct if length < following) for _, following in pairwise(starts)]
    return list(zip(starts, [*ends, distinct[-1]], strict=True))
