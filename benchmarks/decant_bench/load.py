"""Arrival schedules: when each request of a replay is due, fixed before the first one goes out."""

from itertools import accumulate
from typing import Literal

import numpy as np

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
