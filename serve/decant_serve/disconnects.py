"""Work that nobody waits for any more is cancelled: a client that goes away frees what it held."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

T = TypeVar("T")


class ClientGone(Exception):
    """The client closed its connection before the answer was there."""


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`; ClientGone, with the work cancelled, when the client disconnects first.

    The request's body must have been read: what comes next from `receive` is the disconnect.
    """
    working = asyncio.current_task()
    assert working is not None
    cancellations, is_gone = working.cancelling(), False

    async def watch() -> None:
        nonlocal is_gone
        while (await receive())["type"] != "http.disconnect":
            pass
        is_gone = True
        working.cancel()

    watcher = asyncio.ensure_future(watch())
    try:
        return await work
    except asyncio.CancelledError:
        # Somebody else may have cancelled as well, and is owed the same.
        if is_gone and working.uncancel() <= cancellations:
            raise ClientGone from None
        raise
    finally:
        watcher.cancel()
