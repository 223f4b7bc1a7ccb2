"""Bounds on a request's time: the client's own, the gateway's, and the end of a drain."""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from starlette.datastructures import Headers

from decant_serve.openai_errors import ApiFault, refusal, shutting_down

TIMEOUT_HEADER = "X-Decant-Timeout-S"


def asked_limit_s(headers: Headers) -> float | None:
    """How long the client is willing to wait for its whole answer; ApiFault 400 for what is no such time."""
    given = headers.get(TIMEOUT_HEADER)
    if given is None:
        return None
    try:
        limit_s = float(given)
    except ValueError:
        limit_s = math.nan
    if not (math.isfinite(limit_s) and limit_s > 0):
        message = f"{TIMEOUT_HEADER}: must be a number of seconds above 0"
        raise refusal(message, param=TIMEOUT_HEADER, code="invalid_value")
    return limit_s


@asynccontextmanager
async def within(limit_s: float | None, fault: Callable[[], ApiFault]) -> AsyncGenerator[None]:
    """Raises `fault()` when the body takes longer than `limit_s`."""
    timer = asyncio.timeout(limit_s)
    try:
        async with timer:
            yield
    except TimeoutError:
        if not timer.expired():
            raise
        raise fault() from None


class Drain:
    """The way out: not ready any more, and an end set to what is still in flight."""

    def __init__(self, *, limit_s: float) -> None:
        self._limit_s = limit_s
        self._ends_at_s: float | None = None
        self._timers: set[asyncio.Timeout] = set()

    @property
    def is_draining(self) -> bool:
        """Whether it has begun."""
        return self._ends_at_s is not None

    def begin(self) -> None:
        """Sets the end; a second call changes nothing."""
        if self._ends_at_s is None:
            self._ends_at_s = asyncio.get_running_loop().time() + self._limit_s
            for timer in self._timers:
                timer.reschedule(self._ends_at_s)

    @asynccontextmanager
    async def bounded(self) -> AsyncGenerator[None]:
        """Holds one request; ApiFault 503 in it when the drain's time is over."""
        timer = asyncio.timeout_at(self._ends_at_s)
        try:
            async with timer:
                self._timers.add(timer)
                yield
        except TimeoutError:
            if not timer.expired():
                raise
            raise shutting_down() from None
        finally:
            self._timers.discard(timer)
