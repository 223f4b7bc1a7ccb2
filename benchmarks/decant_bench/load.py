"""Arrival schedules: when each request is due, fixed by the seed before the first one goes out."""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Literal

import numpy as np
import numpy.typing as npt

Arrival = Literal["poisson", "constant", "closed"]


def arrival_offsets_s(arrival: Arrival, *, n: int, rate: float, seed: int) -> tuple[float, ...]:
    """Seconds from the start at which each of `n` open-loop requests is due, at `rate` requests per second.

    `constant` puts request i at i / rate. `poisson` draws exponential gaps, so the arrivals are a Poisson
    process; the same seed gives the same schedule, and a shorter one is its beginning.
    """
    assert arrival != "closed", "a closed loop has no schedule: a request is due when a client is free"
    assert rate > 0, f"rate={rate}"
    if arrival == "constant":
        return tuple(index / rate for index in range(n))
    gaps = np.random.default_rng(seed).exponential(1 / rate, size=n)
    return tuple(accumulate(float(gap) for gap in gaps))


def gamma_offsets_s(*, n: int, rate: float, shape: float, seed: int) -> tuple[float, ...]:
    """Gamma-distributed gaps of mean 1 / rate whose coefficient of variation is 1 / sqrt(shape).

    A shape of 1 is a Poisson process; below it requests come in bursts, above it evenly.
    """
    gaps = np.random.default_rng(seed).gamma(shape, 1 / (rate * shape), size=n)
    return tuple(accumulate(float(gap) for gap in gaps))


def ramp_offsets_s(*, rate: float, rate_end: float, duration_s: float, seed: int) -> tuple[float, ...]:
    """A Poisson process whose rate goes in a straight line from `rate` to `rate_end` over the duration.

    Unit-rate arrivals are stretched by the inverse of the expected count at each time, which is exact.
    """
    expected = (rate + rate_end) / 2 * duration_s
    rng = np.random.default_rng(seed)
    units: list[npt.NDArray[np.float64]] = []
    reached = 0.0
    while reached < expected:
        block = reached + np.cumsum(rng.exponential(1.0, size=1024))
        units.append(block)
        reached = float(block[-1])
    counts = np.concatenate(units)
    return tuple(_time_of(float(c), rate, rate_end, duration_s) for c in counts[counts < expected])


def within(offsets_s: Sequence[float], duration_s: float | None) -> tuple[float, ...]:
    """The part of a schedule that is due before the duration is over."""
    return tuple(at for at in offsets_s if duration_s is None or at < duration_s)


def _time_of(count: float, rate: float, rate_end: float, duration_s: float) -> float:
    """When `count` requests are expected: the positive root of rate t + (rate_end - rate) t^2 / 2 T."""
    slope = (rate_end - rate) / duration_s
    if abs(slope) < 1e-12:
        return count / rate
    # In this form neither sign of the slope subtracts nearly equal numbers.
    return 2 * count / (rate + math.sqrt(max(0.0, rate * rate + 2 * slope * count)))
