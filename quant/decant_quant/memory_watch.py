"""Memory: what quantizing takes at the least, asked before it begins, and what a process's children take
together, watched from outside while they work (Linux).
"""

import contextlib
import math
import re
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from decant.errors import QuantizeError
from decant_quant.checkpoint import open_any

_POLL_S = 0.2
_PROC = Path("/proc")
_PSS = re.compile(rb"^Pss:\s+(\d+) kB", re.MULTILINE)


def refuse_small_memory(model: Path, *, measures: bool, meminfo: Path = _PROC / "meminfo") -> None:
    """QuantizeError when not even the largest tensor fits in the memory that is free.

    It is a lower bound, so nothing is refused that could have worked: the largest tensor as it is read and in
    32 bits; where rows are run, a whole layer and the embedding in 32 bits.
    """
    free = _available_bytes(meminfo)
    if free is None:
        return
    stored = open_any(model).tensors
    values = {name: math.prod(tensor.shape) for name, tensor in stored.items()}
    needed = 6 * max(values.values(), default=0)
    if measures:
        first = sum(count for name, count in values.items() if ".layers.0." in name)
        needed = max(needed, 4 * first + 4 * values.get("model.embed_tokens.weight", 0))
    if needed > free:
        raise QuantizeError(
            f"{model}: takes at least {needed / 1e6:.1f} MB of memory and {free / 1e6:.1f} MB are free;"
            f" close other programs or take a machine with more"
        )


def _available_bytes(meminfo: Path) -> int | None:
    """What the kernel says could be taken without swapping; None where it does not say."""
    try:
        found = re.search(rb"^MemAvailable:\s+(\d+) kB", meminfo.read_bytes(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


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
