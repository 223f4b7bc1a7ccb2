"""Points in time, kept to some tens of microseconds without waiting for them busily.

asyncio rounds its timers up to the next millisecond. Linux has timers that are files (timerfd_create(2)),
which an event loop waits for like for a socket; elsewhere the last millisecond is waited out turn by turn.
"""

import asyncio
import ctypes
import heapq
import os
import platform
import time
from collections.abc import Callable
from itertools import count

_CLOCK_MONOTONIC = 1
_ABSOLUTE = 1
_NO_BLOCK = 0o4000
_CLOSE_ON_EXEC = 0o2000000
_SPIN_S = 0.0012
# A time of zero would stop the timer.
_SOONEST_NS = 1


class Timer:
    """Calls back at points of `time.perf_counter`, on the running event loop, in order; to be closed."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._number = count()
        self._alarm = _FileAlarm(self._loop, self._turn) if _has_timer_files() else _LoopAlarm(self._turn)
        self._wakes_s = float("inf")

    def at(self, due_s: float, call: Callable[[], None]) -> None:
        """Calls at `due_s`, or in the next turn of the loop when it has passed."""
        heapq.heappush(self._due, (due_s, next(self._number), call))
        if due_s < self._wakes_s:
            self._plan()

    async def sleep_until(self, due_s: float) -> None:
        """Returns at `due_s`."""
        woken: asyncio.Future[None] = self._loop.create_future()
        self.at(due_s, lambda: None if woken.done() else woken.set_result(None))
        await woken

    def close(self) -> None:
        """Forgets what is due; nothing may be asked of it afterwards."""
        self._due.clear()
        self._alarm.close()

    def _plan(self) -> None:
        self._wakes_s = self._due[0][0] if self._due else float("inf")
        self._alarm.set(self._wakes_s if self._due else None)

    def _turn(self) -> None:
        # `at` must not plan while this runs: it plans once, at its end.
        self._wakes_s = float("-inf")
        try:
            while self._due and self._due[0][0] <= time.perf_counter():
                heapq.heappop(self._due)[2]()
        finally:
            self._plan()


class _FileAlarm:
    """One point in time as a file that becomes readable; `time.perf_counter` is CLOCK_MONOTONIC on Linux."""

    def __init__(self, loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
        self._loop = loop
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._file = self._libc.timerfd_create(_CLOCK_MONOTONIC, _NO_BLOCK | _CLOSE_ON_EXEC)
        if self._file < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        # Interval and time, each as seconds and nanoseconds.
        self._time = (ctypes.c_long * 4)()
        loop.add_reader(self._file, call)

    def set(self, due_s: float | None) -> None:
        """The next call; None for no call. Setting takes back what has come due."""
        due_ns = 0 if due_s is None else max(_SOONEST_NS, int(due_s * 1e9))
        self._time[2], self._time[3] = divmod(due_ns, 10**9)
        self._libc.timerfd_settime(self._file, _ABSOLUTE, self._time, None)

    def close(self) -> None:
        self._loop.remove_reader(self._file)
        os.close(self._file)


class _LoopAlarm:
    """The same by the loop's own timers, whose last millisecond is waited out turn by turn."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._call = call
        self._due_s = 0.0
        self._handle: asyncio.Handle | None = None

    def set(self, due_s: float | None) -> None:
        """The next call; None for no call."""
        self.close()
        if due_s is not None:
            self._due_s = due_s
            self._wait()

    def close(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _wait(self) -> None:
        left_s = self._due_s - time.perf_counter()
        if left_s > _SPIN_S:
            self._handle = self._loop.call_later(left_s - _SPIN_S, self._wait)
        elif left_s > 0:
            self._handle = self._loop.call_soon(self._wait)
        else:
            self._handle = self._loop.call_soon(self._call)


def _has_timer_files() -> bool:
    return platform.system() == "Linux"
