"""What a run shows while it goes on: a small table on a terminal, a line a minute where there is none."""

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Protocol, TextIO

from decant_bench.bench_config import BenchConfig
from decant_bench.driver import Counters
from decant_bench.plan import Plan
from decant_bench.self_check import LoopWatch

# Drawing takes milliseconds of the loop that stamps; once a second stays within its tail.
_REDRAW_S = 1.0
_SECONDS_BETWEEN_LINES = 60.0


class View(Protocol):
    """Where the state of a run is shown."""

    def show(self, state: dict[str, str]) -> None:
        """Shows the newest state."""
        ...

    def close(self) -> None:
        """Leaves the last state standing."""
        ...


class Lines:
    """Plain lines: the first state, one a minute, the last."""

    def __init__(self, title: str, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._title = title
        self._stream = stream
        self._clock = clock
        self._shown_s: float | None = None
        self._last: dict[str, str] = {}

    def show(self, state: dict[str, str]) -> None:
        """Writes a line when the last one is a minute old."""
        self._last = state
        if self._shown_s is None or self._clock() - self._shown_s >= _SECONDS_BETWEEN_LINES:
            self._shown_s = self._clock()
            self._write()

    def close(self) -> None:
        """Writes the last state."""
        self._write()

    def _write(self) -> None:
        words = ", ".join(f"{name} {value}" for name, value in self._last.items())
        self._stream.write(f"{self._title}: {words}\n")
        self._stream.flush()


class Table:
    """A rich table that is drawn over itself."""

    def __init__(self, title: str, stream: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self._title = title
        # Drawn when told and by nobody else: a drawing thread would hold the interpreter at random moments.
        self._live = Live(console=Console(file=stream), auto_refresh=False)
        self._live.start()

    def show(self, state: dict[str, str]) -> None:
        """Draws the table anew."""
        from rich.table import Table as Grid

        grid = Grid(title=self._title, title_justify="left", show_header=False, box=None)
        for name, value in state.items():
            grid.add_row(name, value)
        self._live.update(grid, refresh=True)

    def close(self) -> None:
        """Stops drawing."""
        self._live.stop()


def open_view(title: str, stream: TextIO, *, live: bool) -> View:
    """A table on a terminal where wanted, else lines."""
    return Table(title, stream) if live and stream.isatty() else Lines(title, stream)


@asynccontextmanager
async def watching(
    counters: Counters, watch: LoopWatch, *, plan: Plan, config: BenchConfig
) -> AsyncGenerator[None]:
    """Shows the run's counters for as long as the block lasts."""
    view = open_view(config.title, sys.stderr, live=config.live)
    began_s = time.monotonic()

    def state() -> dict[str, str]:
        return state_words(
            counters, elapsed_s=time.monotonic() - began_s, total=plan.requests, lags_s=watch.lags_s[-50:]
        )

    async def draw() -> None:
        while True:
            view.show(state())
            await asyncio.sleep(_REDRAW_S)

    task = asyncio.create_task(draw())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
        view.show(state())
        view.close()


def state_words(
    counters: Counters, *, elapsed_s: float, total: int, lags_s: Sequence[float]
) -> dict[str, str]:
    """The state of a run in words."""
    rate = f" ({counters.completed / elapsed_s:.1f}/s)" if elapsed_s > 0 else ""
    words = {
        "time": f"{elapsed_s:.0f} s",
        "sent": f"{counters.sent} of {total}",
        "in flight": str(counters.in_flight),
        "completed": f"{counters.completed}{rate}",
    }
    if counters.errors:
        words["failed"] = ", ".join(f"{kind} {n}" for kind, n in counters.errors.most_common())
    if len(lags_s):
        words["loop lag"] = f"{1000 * max(lags_s):.1f} ms"
    return words
