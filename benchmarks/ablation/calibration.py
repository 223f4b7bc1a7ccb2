"""How far a student's confidence in its answers is from how often they are right."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

_BINS = 10
_LEAST = 1e-6


@dataclass(frozen=True, slots=True)
class Calibration:
    """Three readings of the same answers, all better when lower.

    `ece` is the expected calibration error over ten bins of equal width (arXiv 1706.04599), `brier` the mean
    squared distance of confidence and outcome, `log_loss` the mean negative log probability of the outcome.
    """

    ece: float
    brier: float
    log_loss: float

    def to_dict(self) -> dict[str, float]:
        """JSON values."""
        return asdict(self)


def calibration(confidences: Sequence[float], correct: Sequence[int]) -> Calibration:
    """The calibration of answers with their outcomes, 1 or 0."""
    bins: dict[int, list[tuple[float, int]]] = {}
    for confidence, right in zip(confidences, correct, strict=True):
        bins.setdefault(min(int(confidence * _BINS), _BINS - 1), []).append((confidence, right))
    gaps = (abs(sum(c - right for c, right in members)) for members in bins.values())
    return Calibration(
        ece=sum(gaps) / len(correct),
        brier=sum(squared_errors(confidences, correct)) / len(correct),
        log_loss=-sum(
            math.log(max(_LEAST, c if right else 1 - c))
            for c, right in zip(confidences, correct, strict=True)
        )
        / len(correct),
    )


def squared_errors(confidences: Sequence[float], correct: Sequence[int]) -> list[float]:
    """Each answer's part of the Brier score."""
    return [(c - right) ** 2 for c, right in zip(confidences, correct, strict=True)]
