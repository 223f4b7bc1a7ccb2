"""Prediction folders with known outcomes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decant.timing import RequestTiming


@dataclass(frozen=True)
class Asked:
    """One request of a synthetic stage; `answer` None is a failed one."""

    id: str
    gold: str | None
    answer: str | None
    e2e_s: float = 0.1
    length: int | None = None
    group: str | None = None


def write_stage(folder: Path, asked: Sequence[Asked], **evaluation: Any) -> Path:
    """Writes a prediction folder with known outcomes; other keys go into its eval.json."""
    folder.mkdir(exist_ok=True)
    lines = [json.dumps(_row(number, item)) for number, item in enumerate(asked)]
    (folder / "predictions.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    record = {"stage": folder.name, "engine": "llamacpp", "n": len(asked), **evaluation}
    (folder / "eval.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


def _row(number: int, asked: Asked) -> dict[str, Any]:
    """Sent 10 ms late on purpose, so that response and service latency differ by just that."""
    failed = asked.answer is None
    timing = RequestTiming(
        request_id=asked.id,
        intended_s=float(number),
        actual_s=number + 0.01,
        ttft_s=None if failed else asked.e2e_s / 2,
        e2e_s=None if failed else asked.e2e_s,
        completion_tokens=None if failed else 4,
        error_kind="timeout" if failed else None,
    )
    correct = None if asked.gold is None else asked.answer == asked.gold
    row: dict[str, Any] = {"id": asked.id, "gold": asked.gold, "answer": asked.answer, "correct": correct}
    row |= {"group": asked.group, "length": asked.length, "timing": timing.to_dict()}
    row["status"] = "failed" if failed else "done"
    row["error"] = {"kind": "timeout", "message": "too late"} if failed else None
    return row
