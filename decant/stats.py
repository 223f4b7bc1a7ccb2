"""The only place that computes an interval or a p-value: proportions, paired differences, percentiles."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Interval:
    """A two-sided confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """`mean(b) - mean(a)` over the same `n` requests, with its interval.

    `gained` counts the pairs where b is above a, `lost` those where it is below. For 0/1 outcomes `p_value`
    is exact McNemar's and `method`, how the interval was found, "score"; else they are None and "bootstrap".
    """

    mean: float
    interval: Interval
    p_value: float | None
    n: int
    gained: int
    lost: int
    method: Literal["score", "bootstrap"]


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927); of nothing measured it is (0, 1)."""
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    if n == 0:
        return Interval(0.0, 1.0)
    z = _z(confidence)
    rate, spread = successes / n, z * z / n
    centre = (rate + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(rate * (1 - rate) / n + spread / (4 * n))
    return Interval(
        0.0 if successes == 0 else max(0.0, centre - half), 1.0 if successes == n else min(1.0, centre + half)
    )


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided exact p-value of `b` against `c` discordant pairs under a fair coin; 1.0 for none."""
    if b < 0 or c < 0:
        raise ValueError(f"negative counts of discordant pairs: {b}, {c}")
    n, few = b + c, min(b, c)
    tail = sum(math.comb(n, k) for k in range(few + 1))
    return min(1.0, 2 * tail / 2**n)


def paired_difference(
    a: Sequence[float], b: Sequence[float], *, seed: int, resamples: int = 5000, confidence: float = 0.95
) -> PairedDifference:
    """The difference `b - a` of two stages measured on the same requests, in the same order.

    0/1 outcomes get Tango's score interval (Tango 1998): it keeps its coverage when few pairs differ or none
    does, where resampling gives an interval of no width. Others get the percentile paired bootstrap.
    ValueError when the lengths differ or nothing was measured.
    """
    if len(a) != len(b) or not len(a):
        raise ValueError(f"paired outcomes need equal, non-zero lengths, got {len(a)} and {len(b)}")
    before, after = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    differences = after - before
    gained, lost = int((differences > 0).sum()), int((differences < 0).sum())
    binary = bool(np.isin(before, (0, 1)).all() and np.isin(after, (0, 1)).all())
    if binary:
        interval = _tango(gained, lost, len(a), confidence)
    else:
        interval = _bootstrap(differences, lambda rows: rows.mean(axis=1), seed, resamples, confidence)
    return PairedDifference(
        mean=float(differences.mean()),
        interval=interval,
        p_value=mcnemar_exact(gained, lost) if binary else None,
        n=len(a),
        gained=gained,
        lost=lost,
        method="score" if binary else "bootstrap",
    )


def non_inferior(diff: PairedDifference, margin: float) -> bool:
    """Whether the loss is shown to be smaller than `margin`: the whole interval lies above `-margin`."""
    if margin < 0:
        raise ValueError(f"margin={margin}: give the allowed loss as a number of 0 or more")
    return diff.interval.low > -margin


def bootstrap_percentile(
    values: Sequence[float], q: float, *, seed: int, resamples: int = 5000, confidence: float = 0.95
) -> Interval:
    """The percentile-bootstrap interval of the `q`-th percentile (`q` in percent)."""
    if not len(values):
        raise ValueError("an interval of no values")
    sample = np.asarray(values, dtype=np.float64)
    # numpy's default is the linear interpolation of `decant.timing.percentile`.
    return _bootstrap(sample, lambda rows: np.percentile(rows, q, axis=1), seed, resamples, confidence)


def least_n(q: float, confidence: float = 0.95) -> int:
    """The smallest sample that can bound the `q`-th percentile on both sides at this confidence.

    With fewer values the percentile lies beyond the largest (or smallest) of them too often for an interval
    made of the values to hold it: David and Nagaraja, Order Statistics, section 7.1.
    """
    if not 0 < q < 100:
        raise ValueError(f"q={q}: a percentile is given in percent, between 0 and 100")
    farther = max(q, 100 - q) / 100
    return math.ceil(math.log((1 - confidence) / 2) / math.log(farther))


def percentile_draws(
    values: Sequence[float] | npt.NDArray[np.float64],
    qs: Sequence[float],
    *,
    blocks: Sequence[int] | npt.NDArray[np.int64] | None = None,
    seed: int,
    resamples: int = 2000,
) -> npt.NDArray[np.float64]:
    """Bootstrap draws of several percentiles at once: (resamples, percentiles).

    Whole blocks are drawn, not values: latencies that share a queue, or a request, are not independent, and
    drawing them one by one gives intervals that are too narrow. `blocks` names each value's block; without
    it each value is its own. Many values get fewer resamples, so that the time stays bounded.
    """
    if not len(values):
        raise ValueError("draws of no values")
    sample = np.asarray(values, dtype=np.float64)
    order = np.argsort(sample, kind="stable")
    ordered = sample[order]
    _, named = np.unique(np.arange(sample.size) if blocks is None else blocks, return_inverse=True)
    block_of = named[order]
    count = int(named.max()) + 1
    rng = np.random.default_rng(seed)
    rows = max(_LEAST_RESAMPLES, min(resamples, _WEIGHTS_AT_MOST // sample.size))
    at_once = max(1, _FLOATS_AT_ONCE // sample.size)
    found = [
        _weighted_percentiles(
            ordered,
            rng.multinomial(count, np.full(count, 1 / count), size=min(at_once, rows - start))[:, block_of],
            qs,
        )
        for start in range(0, rows, at_once)
    ]
    return np.concatenate(found)


def interval_of(draws: npt.NDArray[np.float64], confidence: float = 0.95) -> Interval:
    """The percentile interval of bootstrap draws of one number."""
    tail = 50 * (1 - confidence)
    low, high = np.percentile(draws, (tail, 100 - tail))
    return Interval(float(low), float(high))


def _weighted_percentiles(
    ordered: npt.NDArray[np.float64], times: npt.NDArray[np.int64], qs: Sequence[float]
) -> npt.NDArray[np.float64]:
    # Type 7, as everywhere, of the samples (a row each) in which value i stands times[row, i] times. Rows are
    # shifted apart, so that one search over all of them finds every percentile.
    cumulated = np.cumsum(times, axis=1)
    totals = cumulated[:, -1:]
    rows = np.arange(len(times))[:, None]
    shift = rows * (int(totals.max()) + 1)
    flat = (cumulated + shift).ravel()

    def value_at(place: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return ordered[np.searchsorted(flat, place + shift, side="right") - rows * len(ordered)]

    position = (totals - 1) * np.asarray(qs, dtype=np.float64) / 100
    below = np.floor(position)
    low, high = value_at(below), value_at(np.minimum(below + 1, totals - 1))
    return low + (high - low) * (position - below)


def _z(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: give a fraction such as 0.95")
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _tango(gained: int, lost: int, n: int, confidence: float) -> Interval:
    z = _z(confidence)
    return Interval(_tango_low(gained, lost, n, z), -_tango_low(lost, gained, n, z))


def _tango_low(gained: int, lost: int, n: int, z: float) -> float:
    # The root of gained - lost - n d = z sqrt(n v(d)) between -1, where v is 0, and the observed difference.
    low, high = -1.0, (gained - lost) / n
    for _ in range(60):
        middle = (low + high) / 2
        if gained - lost - n * middle > z * math.sqrt(n * _tango_variance(gained, lost, n, middle)):
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _tango_variance(gained: int, lost: int, n: int, difference: float) -> float:
    # `loss_rate` is the most likely P(lost) given that P(gained) - P(lost) is `difference`.
    linear = (2 * n - gained + lost) * difference - gained - lost
    constant = -lost * difference * (1 - difference)
    root = math.sqrt(max(0.0, linear * linear - 8 * n * constant))
    loss_rate = (root - linear) / (4 * n)
    return max(0.0, 2 * loss_rate + difference * (1 - difference))


_FLOATS_AT_ONCE = 500_000
_WEIGHTS_AT_MOST = 100_000_000
_LEAST_RESAMPLES = 200


def _bootstrap(
    sample: npt.NDArray[np.float64],
    statistic: Callable[[npt.NDArray[np.float64]], npt.NDArray[np.float64]],
    seed: int,
    resamples: int,
    confidence: float,
) -> Interval:
    # `statistic` takes (resamples, n) to (resamples,); in blocks, so that memory stays bounded.
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(
            f"confidence={confidence} and resamples={resamples}: give a fraction and a positive number"
        )
    rng = np.random.default_rng(seed)
    block = max(1, _FLOATS_AT_ONCE // sample.size)
    found = [
        statistic(sample[rng.integers(0, sample.size, (min(block, resamples - start), sample.size))])
        for start in range(0, resamples, block)
    ]
    tail = 50 * (1 - confidence)
    low, high = np.percentile(np.concatenate(found), (tail, 100 - tail))
    return Interval(float(low), float(high))
