"""Who may go to the engine now, who waits, and who is turned away."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from decant_serve.openai_errors import overloaded


class Admission:
    """A bounded queue before a bounded number of slots, first come first served."""

    def __init__(self, *, slots: int, queue_limit: int) -> None:
        self._free = asyncio.Semaphore(slots)
        self._queue_limit = queue_limit
        self.waiting = 0
        self.running = 0

    @asynccontextmanager
    async def slot(self) -> AsyncGenerator[None]:
        """Holds a slot for as long as the context lasts; ApiFault 429 when the queue is full."""
        if self._free.locked() and self.waiting >= self._queue_limit:
            raise overloaded(self._queue_limit)
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self._free.release()
