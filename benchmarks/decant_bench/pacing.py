"""Sending on time: an open loop on a schedule that is never moved, a closed loop of busy clients, a hard end.

A request that is late is sent at once, and the one after it is still due when it was due.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from decant.timer import Timer

T = TypeVar("T")

HEAD_START_S = 0.02


class Clock(Protocol):
    """Where the pacing gets its time from."""

    def now_s(self) -> float:
        """Monotonic seconds."""
        ...

    async def sleep_until(self, due_s: float) -> None:
        """Returns at `due_s`, or at once when it has passed; others run meanwhile."""
        ...


class MonotonicClock:
    """`time.perf_counter`, waited for to some tens of microseconds; to be closed by who slept on it."""

    def __init__(self) -> None:
        self._timer: Timer | None = None

    def now_s(self) -> float:
        """Seconds of `time.perf_counter`, which the client's stamps use too."""
        return time.perf_counter()

    async def sleep_until(self, due_s: float) -> None:
        """Sleeps on a timer that is finer than the event loop's own."""
        if due_s <= time.perf_counter():
            return
        if self._timer is None:
            self._timer = Timer()
        await self._timer.sleep_until(due_s)

    def close(self) -> None:
        """Lets the timer go."""
        if self._timer is not None:
            self._timer.close()
            self._timer = None


async def send_open(
    items: Sequence[T],
    offsets_s: Sequence[float],
    send: Callable[[T, float], Awaitable[None]],
    *,
    clock: Clock,
    start_s: float,
    grace_s: float | None = None,
) -> int:
    """Calls `send(item, due_s)` for each item at its time; returns how many were sent.

    Ends when all are done, or `grace_s` after the last is due: what is in flight is cancelled then, and what
    a late sender has not sent by then is left.
    """
    end_s = None if grace_s is None else start_s + (offsets_s[-1] if offsets_s else 0.0) + grace_s
    tasks: set[asyncio.Task[None]] = set()
    sent = 0
    async with asyncio.TaskGroup() as group:
        for item, offset_s in zip(items, offsets_s, strict=True):
            due_s = start_s + offset_s
            await clock.sleep_until(due_s)
            if end_s is not None and clock.now_s() > end_s:
                break
            task = group.create_task(_as_coroutine(send(item, due_s)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            sent += 1
            # It starts now, also when the next one is due already.
            await asyncio.sleep(0)
        await _finish(tasks, end_s=end_s, clock=clock)
    return sent


async def send_closed(
    items: Iterable[T],
    send: Callable[[T], Awaitable[None]],
    *,
    clients: int,
    clock: Clock,
    end_s: float | None = None,
    grace_s: float | None = None,
) -> int:
    """Keeps `clients` items in flight until there are no more or `end_s` is past; returns how many were sent.

    With `end_s`, what is in flight `grace_s` later is cancelled.
    """
    waiting = iter(items)
    sent = 0

    async def work() -> None:
        nonlocal sent
        while end_s is None or clock.now_s() < end_s:
            try:
                item = next(waiting)
            except StopIteration:
                return
            sent += 1
            await send(item)

    async with asyncio.TaskGroup() as group:
        tasks = {group.create_task(work()) for _ in range(clients)}
        limit_s = None if end_s is None or grace_s is None else end_s + grace_s
        await _finish(tasks, end_s=limit_s, clock=clock)
    return sent


async def _finish(tasks: set[asyncio.Task[None]], *, end_s: float | None, clock: Clock) -> None:
    if end_s is None or not tasks:
        return
    pending = set(tasks)
    while pending and (left_s := end_s - clock.now_s()) > 0:
        _, pending = await asyncio.wait(pending, timeout=left_s)
    for task in pending:
        task.cancel()


async def _as_coroutine(awaitable: Awaitable[None]) -> None:
    await awaitable
