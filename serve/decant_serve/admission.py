"""Who may go to the engine now, who waits, and who is turned away."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from contextvars import ContextVar

from decant_serve.openai_errors import overloaded

IN_BACKGROUND: ContextVar[bool] = ContextVar("in_background", default=False)
"""Set by tasks whose requests come after all others; every route asks for its slot by itself."""


class Admission:
    """A bounded queue before a bounded number of slots, first come first served.

    What runs in the background takes a slot only when no other request waits for one.
    """

    def __init__(self, *, slots: int, queue_limit: int) -> None:
        self._free = asyncio.Semaphore(slots)
        self._queue_limit = queue_limit
        self._patient: deque[asyncio.Future[None]] = deque()
        self.waiting = 0
        self.running = 0

    @asynccontextmanager
    async def slot(self) -> AsyncGenerator[None]:
        """Holds a slot for as long as the context lasts; ApiFault 429 when the queue is full."""
        await (self._take_spare() if IN_BACKGROUND.get() else self._take())
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self._free.release()
            self._call_patient()

    async def _take(self) -> None:
        if self._free.locked() and self.waiting >= self._queue_limit:
            raise overloaded(self._queue_limit)
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
            # Whoever leaves the queue without a slot may have been the last to be waited for.
            self._call_patient()

    async def _take_spare(self) -> None:
        while self.waiting or self._free.locked():
            turn = asyncio.get_running_loop().create_future()
            self._patient.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                self._call_patient()
                raise
        await self._free.acquire()

    def _call_patient(self) -> None:
        if self.waiting or self._free.locked():
            return
        while self._patient:
            turn = self._patient.popleft()
            if not turn.done():
                turn.set_result(None)
                return
