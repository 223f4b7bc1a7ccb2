"""How sure a label is: votes, log-probability and mark as one probability, fitted on the rows with gold.

Platt scaling (Platt, 1999) is a logistic regression on these signals; isotonic (Zadrozny and Elkan, 2002)
puts a monotone function on its score. Both are cross-fitted: no row is rated by a fit that saw it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Method = Literal["platt", "isotonic"]
FOLDS = 5
LEAST_LABELS = 50
_BINS = 15
_ROUNDS = 50
_RIDGE = 1.0

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Signals:
    """What is known of an answer: its votes among the samples, its log-probability, a judge's mark."""

    votes: int
    drawn: int
    logprob: float | None = None
    judge: float | None = None

    @property
    def raw(self) -> float:
        """The confidence that one would take as it is: the vote share, or of one sample its probability."""
        if self.drawn > 1 or self.logprob is None:
            return self.votes / max(1, self.drawn)
        return exp(min(0.0, self.logprob))

    def features(self) -> tuple[float, ...]:
        """The log-odds of the votes, then each other signal with whether it is missing."""
        votes = min(self.votes, self.drawn)
        odds = (votes + 0.5) / (self.drawn - votes + 0.5)
        absent = (float(self.logprob is None), float(self.judge is None))
        return (float(np.log(odds)), self.logprob or 0.0, absent[0], self.judge or 0.0, absent[1])


@dataclass(frozen=True, slots=True)
class Judged:
    """An answer with gold: its signals, whether it is right, and its prompt's fold."""

    signals: Signals
    right: bool
    fold: int


@dataclass(frozen=True, slots=True)
class Report:
    """What it did to the rows with gold: expected calibration error and Brier score, cross-fitted."""

    method: Method
    labels: int
    right: int
    ece_before: float
    ece_after: float
    brier_before: float
    brier_after: float


class _Fit:
    """Logistic regression with a small ridge, by Newton's method; isotonic regression on its score."""

    def __init__(self, features_NF: Floats, right_N: Floats, method: Method) -> None:
        self._mean_F = features_NF.mean(axis=0)
        spread_F = features_NF.std(axis=0)
        # A signal that never varies carries nothing, and must not be divided by zero.
        self._scale_F = np.where(spread_F > 1e-9, spread_F, np.inf)
        self._weights = _logistic(self._design(features_NF), right_N)
        self._steps: tuple[Floats, Floats] | None = None
        if method == "isotonic":
            self._steps = _isotonic(self._design(features_NF) @ self._weights, right_N)

    def probability(self, features_NF: Floats) -> Floats:
        score_N = self._design(features_NF) @ self._weights
        if self._steps is not None:
            return np.interp(score_N, *self._steps)
        return _sigmoid(score_N)

    def _design(self, features_NF: Floats) -> Floats:
        scaled_NF = (features_NF - self._mean_F) / self._scale_F
        return np.hstack([np.ones((len(scaled_NF), 1)), scaled_NF])


class Calibrator:
    """Probabilities of being right, learned from labels with gold."""

    def __init__(self, judged: Sequence[Judged], method: Method) -> None:
        features_NF = np.array([one.signals.features() for one in judged])
        right_N = np.array([one.right for one in judged], dtype=np.float64)
        fold_N = np.array([one.fold for one in judged])
        self._fits = [_Fit(features_NF[fold_N != f], right_N[fold_N != f], method) for f in range(FOLDS)]
        after_N = np.empty(len(judged))
        for fold in range(FOLDS):
            held_N = fold_N == fold
            if held_N.any():
                after_N[held_N] = self._fits[fold].probability(features_NF[held_N])
        before_N = np.array([one.signals.raw for one in judged])
        self.report = Report(
            method=method,
            labels=len(judged),
            right=int(right_N.sum()),
            ece_before=calibration_error(before_N, right_N),
            ece_after=calibration_error(after_N, right_N),
            brier_before=float(np.mean((before_N - right_N) ** 2)),
            brier_after=float(np.mean((after_N - right_N) ** 2)),
        )

    def confidence(self, signals: Signals, fold: int | None) -> float:
        """The probability of a label; `fold` is that of a row with gold, None where all fits may speak."""
        features_1F = np.array([signals.features()])
        fits = self._fits if fold is None else [self._fits[fold]]
        return float(np.mean([fit.probability(features_1F)[0] for fit in fits]))


def why_not(judged: Sequence[Judged]) -> str | None:
    """Why these labels cannot be calibrated on, None when they can."""
    right = sum(one.right for one in judged)
    if len(judged) < LEAST_LABELS:
        return f"only {len(judged)} answers have gold; {LEAST_LABELS} are needed"
    folds = range(FOLDS)
    if any(len({one.right for one in judged if one.fold != fold}) < 2 for fold in folds):
        return f"{right} of {len(judged)} answers are right: nothing tells right from wrong"
    return None


def calibration_error(confidence_N: Floats, right_N: Floats) -> float:
    """The expected calibration error over 15 equal bins (Guo et al., 2017, section 2)."""
    bin_N = np.minimum((confidence_N * _BINS).astype(int), _BINS - 1)
    gap_B = np.abs(
        np.bincount(bin_N, weights=confidence_N, minlength=_BINS)
        - np.bincount(bin_N, weights=right_N, minlength=_BINS)
    )
    return float(gap_B.sum() / len(right_N))


def _logistic(design_NF: Floats, right_N: Floats) -> Floats:
    weights = np.zeros(design_NF.shape[1])
    ridge = np.full(design_NF.shape[1], _RIDGE)
    ridge[0] = 1e-6  # the intercept is free
    for _ in range(_ROUNDS):
        probability_N = _sigmoid(design_NF @ weights)
        slope = design_NF.T @ (probability_N - right_N) + ridge * weights
        curve = (design_NF.T * (probability_N * (1 - probability_N))) @ design_NF + np.diag(ridge)
        step = np.linalg.solve(curve, slope)
        weights -= step
        if np.abs(step).max() < 1e-8:
            break
    return weights


def _isotonic(score_N: Floats, right_N: Floats) -> tuple[Floats, Floats]:
    """Pool adjacent violators; the blocks' mean scores and shares of right answers, both rising."""
    scores_U, place_N, count_U = np.unique(score_N, return_inverse=True, return_counts=True)
    right_U = np.bincount(place_N, weights=right_N)
    blocks: list[tuple[float, float, int]] = []
    for score, right, size in zip(scores_U.tolist(), right_U.tolist(), count_U.tolist(), strict=True):
        block = (score, right / size, size)
        while blocks and blocks[-1][1] >= block[1]:
            other = blocks.pop()
            count = other[2] + block[2]
            block = (
                (other[0] * other[2] + block[0] * block[2]) / count,
                (other[1] * other[2] + block[1] * block[2]) / count,
                count,
            )
        blocks.append(block)
    scores, shares, _ = zip(*blocks, strict=True)
    return np.array(scores), np.array(shares)


def _sigmoid(values: Floats) -> Floats:
    return 1.0 / (1.0 + np.exp(-np.clip(values, -500, 500)))
