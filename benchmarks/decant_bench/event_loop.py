"""The event loop that measures: libuv's, where it runs, for it costs less per event than Python's own."""

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_measuring(work: Coroutine[Any, Any, T]) -> T:
    """Runs the coroutine to its end on a loop of its own."""
    if sys.platform == "win32":
        return asyncio.run(work)
    import uvloop

    return uvloop.run(work)
