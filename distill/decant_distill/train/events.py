"""What happened during a run, one JSON line each, as it happened: a kill loses none of it."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class EventLog:
    """The file that a run's events are appended to; without one they are only passed on."""

    path: Path | None
    clock: Callable[[], datetime] = _now

    def add(self, event: str, *, step: int, **details: Any) -> None:
        """Appends one event of this step and lets it reach the disk."""
        if self.path is None:
            return
        line = {"at": self.clock().isoformat(timespec="seconds"), "event": event, "step": step, **details}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def read(self) -> list[dict[str, Any]]:
        """All events so far; the last line is left out where a kill cut it."""
        if self.path is None or not self.path.exists():
            return []
        found: list[dict[str, Any]] = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found
