"""What the client did to the measurement: its event loop's lag, how late it sent, whether that matters."""

import asyncio
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Self

from decant.errors import DecantError
from decant.timer import Timer
from decant.timing import percentile, summarize
from decant.wire_client import Stamps

_SAMPLE_EVERY_S = 0.02
# Below these a run is not doubted: a busy machine's scheduler has a grain of its own.
_TAIL_FLOOR_S = 0.002
_MEDIAN_FLOOR_S = 0.001


class InvalidRun(DecantError):
    """A run whose client was too slow for what it measured; its result is written and marked."""

    exit_code = 3


class LoopWatch:
    """Samples how late the event loop comes back to a task that slept; an async context manager."""

    def __init__(self) -> None:
        self.lags_s = array("d")
        self.cpu_share = 0.0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._cpu_s, self._began_s = time.process_time(), time.perf_counter()
        self._task = asyncio.create_task(self._sample())
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.wait({self._task})
        wall_s = time.perf_counter() - self._began_s
        self.cpu_share = (time.process_time() - self._cpu_s) / wall_s if wall_s > 0 else 0.0

    async def _sample(self) -> None:
        with closing(Timer()) as timer:
            while True:
                due_s = time.perf_counter() + _SAMPLE_EVERY_S
                await timer.sleep_until(due_s)
                self.lags_s.append(time.perf_counter() - due_s)


@dataclass(frozen=True, slots=True)
class Measured:
    """What the run is about: its typical time to first token (or whole answer) and gap between chunks."""

    first_s: float
    gap_s: float | None


@dataclass(frozen=True, slots=True)
class ClientRecord:
    """The client's own errors, in seconds; `cpu_share` of one core. In a closed loop nothing is due.

    A send delay holds the schedule error and, where one is opened, the connection: that is the network's.
    """

    lags_s: Sequence[float]
    schedule_errors_s: Sequence[float]
    send_delays_s: Sequence[float]
    cpu_share: float
    stamps: Stamps = "read"
    processes: int = 1

    def doubts(self, measured: Measured, *, share: float) -> list[str]:
        """Why the run is not valid: each error that is large against what was measured."""
        return list(self._doubts(measured, share))

    def to_json(self) -> dict[str, Any]:
        """The record for result.json."""
        return {
            "loop_lag_s": _with_max(self.lags_s),
            "schedule_error_s": _with_max(self.schedule_errors_s),
            "send_delay_s": _with_max(self.send_delays_s),
            "cpu_share": self.cpu_share,
            "stamps": self.stamps,
            "processes": self.processes,
        }

    def _doubts(self, measured: Measured, share: float) -> Iterator[str]:
        tail_s = max(_TAIL_FLOOR_S, share * measured.first_s)
        late = {"schedule error": self.schedule_errors_s, "event loop's lag": self.lags_s}
        if self.stamps == "kernel" and measured.gap_s is not None:
            # A late read still finds the time of arrival, unless more has come meanwhile: then there is one
            # stamp for both.
            del late["event loop's lag"]
            found = _over(self.lags_s, 99, max(tail_s, measured.gap_s))
            if found is not None:
                yield (
                    f"the event loop's lag reached {1000 * found:.1f} ms (p99), more than the typical gap"
                    f" between chunks, {1000 * measured.gap_s:.1f} ms"
                )
        for what, values in late.items():
            found = _over(values, 99, tail_s)
            if found is not None:
                against = f"{1000 * tail_s:.1f} ms, {share:.0%} of the typical first answer"
                yield f"the {what} reached {1000 * found:.1f} ms (p99); the limit is {against}"
        if measured.gap_s is not None and self.stamps == "read":
            typical_s = max(_MEDIAN_FLOOR_S, share * measured.gap_s)
            found = _over(self.lags_s, 50, typical_s)
            if found is not None:
                against = f"{1000 * typical_s:.1f} ms, {share:.0%} of the typical gap between chunks"
                yield f"the event loop's lag is {1000 * found:.1f} ms (p50); the limit is {against}"


def _over(values: Sequence[float], q: float, limit_s: float) -> float | None:
    found = percentile(values, q) if len(values) else 0.0
    return found if found > limit_s else None


def _with_max(values: Sequence[float]) -> dict[str, Any]:
    return {**summarize(values), "max": max(values, default=None)}


def quiet_collector() -> Callable[[], None]:
    """Keeps the garbage collector off what exists, for its pauses would be measured; the result undoes it."""
    import gc

    gc.collect()
    gc.freeze()
    return gc.unfreeze
