"""Progress of a long stage: a bar on a terminal, a line a minute where there is none."""

import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self, TextIO

if TYPE_CHECKING:
    import rich.progress

_SECONDS_BETWEEN_LINES = 60.0


class Progress:
    """Shows how many of `total` things are done, their rate, the time left, and what else the stage says.

    A resumed stage gives `start`, what was done before, which does not count in the rate. Writes to stderr.
    Not thread-safe: one thread advances it.
    """

    def __init__(
        self,
        total: int,
        *,
        unit: str,
        label: str,
        start: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._total = total
        self._unit = unit
        self._label = label
        self._start = self._done = start
        self._stream = stream or sys.stderr
        self._clock = clock
        self._extra: dict[str, object] = {}
        self._began_s = 0.0
        self._view: _View | None = None

    def __enter__(self) -> Self:
        self._began_s = self._clock()
        self._view = _Bar(self._stream) if self._stream.isatty() else _Lines(self._stream, self._clock)
        self._view.begin(self._label, self._done, self._total, self._unit)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._view is not None:
            took_s = self._clock() - self._began_s
            outcome = "done" if error is None else "stopped"
            self._view.end(self._done, f"{outcome} in {_duration(took_s)}, {self._words(took_s, left=False)}")
            self._view = None

    def advance(self, n: int = 1, **extra: object) -> None:
        """Counts `n` more; `extra` (cost, loss) is shown behind the rate until its next value."""
        self._done += n
        self._extra.update(extra)
        if self._view is not None:
            self._view.update(self._done, self._words(self._clock() - self._began_s, left=True))

    def _words(self, elapsed_s: float, *, left: bool) -> str:
        fresh = self._done - self._start
        words: list[str] = []
        if fresh > 0 and elapsed_s > 0:
            words.append(f"{_number(fresh / elapsed_s)} {self._unit}/s")
            if left and self._total > self._done:
                words.append(f"{_duration((self._total - self._done) * elapsed_s / fresh)} left")
        return ", ".join(words + _named(self._extra))


class _View(Protocol):
    def begin(self, label: str, done: int, total: int, unit: str) -> None: ...
    def update(self, done: int, words: str) -> None: ...
    def end(self, done: int, words: str) -> None: ...


class _Lines:
    """Plain lines: at the start, at most one a minute, at the end."""

    def __init__(self, stream: TextIO, clock: Callable[[], float]) -> None:
        self._stream = stream
        self._clock = clock
        self._last_s = clock()
        self._head = ""
        self._of = ""

    def begin(self, label: str, done: int, total: int, unit: str) -> None:
        self._head, self._of = label, f"/{total} {unit}"
        self._line(done, "")

    def update(self, done: int, words: str) -> None:
        if self._clock() - self._last_s >= _SECONDS_BETWEEN_LINES:
            self._last_s = self._clock()
            self._line(done, words)

    def end(self, done: int, words: str) -> None:
        self._line(done, words)

    def _line(self, done: int, words: str) -> None:
        self._stream.write(f"{self._head}: {done}{self._of}{', ' * bool(words)}{words}\n")
        self._stream.flush()


class _Bar:
    """A rich bar that stays, full or not, when it ends."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[words]}", markup=False),
            console=Console(file=stream),
        )
        self._task: rich.progress.TaskID | None = None
        self._unit = ""

    def begin(self, label: str, done: int, total: int, unit: str) -> None:
        self._unit = unit
        self._task = self._bar.add_task(label, total=total, completed=done, words=unit)
        self._bar.start()

    def update(self, done: int, words: str) -> None:
        assert self._task is not None
        self._bar.update(self._task, completed=done, words=f"{self._unit}, {words}" if words else self._unit)

    def end(self, done: int, words: str) -> None:
        self.update(done, words)
        self._bar.stop()


def _named(values: Mapping[str, object]) -> list[str]:
    shown = {name: _number(value) if isinstance(value, float) else value for name, value in values.items()}
    return [f"{name.replace('_', ' ')} {text}" for name, text in shown.items()]


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
