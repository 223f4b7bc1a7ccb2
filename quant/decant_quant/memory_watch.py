"""The memory that a process's children take together, watched from outside while they work (Linux)."""

import contextlib
import re
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

_POLL_S = 0.2
_PROC = Path("/proc")
_PSS = re.compile(rb"^Pss:\s+(\d+) kB", re.MULTILINE)


class MemoryWatch:
    """Notes the peak of the memory of all descendants of a process, itself left out.

    Proportional set size: pages that several processes share count once. `peak_bytes` is None where the
    system does not tell.
    """

    def __init__(self, process_id: int) -> None:
        self._process_id = process_id
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_bytes: int | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(_POLL_S):
            seen = [found for child in descendants(self._process_id) if (found := pss_bytes(child))]
            if seen:
                self.peak_bytes = max(self.peak_bytes or 0, sum(seen))


def descendants(process_id: int) -> list[int]:
    """The ids of a process's children, their children and so on."""
    found: list[int] = []
    for task in (_PROC / str(process_id) / "task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


def pss_bytes(process_id: int) -> int | None:
    """A process's proportional set size; None when it has ended or the system has no such file."""
    try:
        found = _PSS.search((_PROC / str(process_id) / "smaps_rollup").read_bytes())
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
