"""The steady part of a run: without the time in which caches, queues and clocks settle, or a run empties."""

from dataclasses import dataclass

import numpy as np

from decant_bench.columns import Floats

_BATCH = 5
_LEAST_BATCHES = 12


@dataclass(frozen=True, slots=True)
class SteadyWindow:
    """The requests `first`..`last` (exclusive), in order of sending.

    `found` is False when the latency never settles, as under overload, or the run is too short to tell; the
    window is then the whole run, and `reason` says why.
    """

    first: int
    last: int
    found: bool
    reason: str = ""


def steady_window(latencies_s: Floats) -> SteadyWindow:
    """The window of MSER-5 from both ends.

    Cuts as many batches of five as make the standard error of the remaining mean smallest, at most half of
    them: White, "An effective truncation heuristic for bias reduction in simulation output", 1997.
    """
    n = len(latencies_s)
    if n < _BATCH * _LEAST_BATCHES:
        return SteadyWindow(0, n, found=False, reason=f"{n} requests are too few to tell")
    head = _cut(latencies_s)
    tail = _cut(latencies_s[::-1])
    if head is None or tail is None or head + tail > n // 2:
        return SteadyWindow(0, n, found=False, reason="the latency does not settle")
    return SteadyWindow(head, n - tail, found=True)


def _cut(latencies_s: Floats) -> int | None:
    """How many requests to cut at the start; None when it would be half of them or more."""
    batches = len(latencies_s) // _BATCH
    means = latencies_s[: batches * _BATCH].reshape(batches, _BATCH).mean(axis=1)
    half = batches // 2
    errors = [float(means[cut:].var() / (batches - cut)) for cut in range(half + 1)]
    best = int(np.argmin(errors))
    return None if best == half else best * _BATCH
