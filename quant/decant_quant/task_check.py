"""The task's accuracy of an artifact beside the model it was made from, through `decant eval` and files.

Both answer the same requests, greedily; a failed request is a wrong answer.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decant.dataset import read_good_rows
from decant.errors import DataError, QuantizeError
from decant.files import write_json
from decant.processes import end_with_parent
from decant.stats import PairedDifference, paired_difference
from decant_quant.memory_watch import MemoryWatch
from decant_quant.quantize_config import EvaluationConfig

# Greedy answers leave nothing to chance but the bootstrap of graded scores, which 0/1 outcomes do without.
_SEED = 0


@dataclass(frozen=True, slots=True)
class Serving:
    """How a model is served for the comparison: the engine's name, and what it must hold."""

    engine: str
    context: int
    concurrency: int
    threads: int | None
    engine_python: Path | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """One model's outcomes by request id, its speed, and the peak memory of everything that served it."""

    correct: Mapping[str, bool]
    peak_bytes: int | None
    latency: Mapping[str, Any]

    @property
    def accuracy(self) -> float:
        """The share of right answers."""
        return sum(self.correct.values()) / len(self.correct)


def evaluate(model: Path, output: Path, config: EvaluationConfig, serving: Serving) -> Answered:
    """Serves and replays in child processes; QuantizeError with their last line when they fail."""
    assert config.data is not None
    output.mkdir(parents=True, exist_ok=True)
    endpoint: dict[str, Any] = {
        "serve": str(model.absolute()),
        "engine": serving.engine,
        "parallel": serving.concurrency,
        "context": serving.context,
        "threads": serving.threads,
        "engine_python": None if serving.engine_python is None else str(serving.engine_python),
    }
    settings = {
        "data": str(config.data.absolute()),
        "output": str(output.absolute()),
        "stage": output.name,
        "endpoint": {key: value for key, value in endpoint.items() if value is not None},
        "task": config.task.model_dump(mode="json"),
        "arrival": "closed",
        "concurrency": serving.concurrency,
        "saturate_requests": 0,
        **({"limit": config.limit} if config.limit else {}),
    }
    write_json(output / "config.json", settings)
    peak_bytes = _run(output)
    recorded = json.loads((output / "eval.json").read_text(encoding="utf-8"))
    return Answered(_outcomes(output), peak_bytes, recorded["latency"])


def compare(before: Answered, after: Answered) -> PairedDifference:
    """The paired difference in accuracy over the same requests."""
    ids = list(before.correct)
    if set(ids) != set(after.correct):
        raise DataError("the two replays graded other requests; run the same command again")
    return paired_difference(
        [float(before.correct[key]) for key in ids], [float(after.correct[key]) for key in ids], seed=_SEED
    )


def _run(output: Path) -> int | None:
    command = [sys.executable, "-m", "decant", "eval", "--config", str(output / "config.json")]
    log = output / "eval.log"
    with log.open("wb") as said:
        child = subprocess.Popen(command, stdout=said, stderr=said, preexec_fn=end_with_parent())  # noqa: PLW1509 - no thread yet
        with MemoryWatch(child.pid) as memory:
            code = child.wait()
    if code != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = lines[-1] if lines else f"exit code {code}"
        raise QuantizeError(
            f"`decant eval` could not measure {output.name}: {last.removeprefix('decant: ')} (see {log})"
        )
    return memory.peak_bytes


def _outcomes(output: Path) -> dict[str, bool]:
    rows = read_good_rows(output / "predictions.jsonl")
    graded = {
        str(r.fields["id"]): bool(r.fields["correct"]) for r in rows if r.fields.get("correct") is not None
    }
    if not graded:
        raise DataError(
            f"{output / 'predictions.jsonl'}: no row has a true answer to grade by; name its field with"
            f" --set evaluation.task.gold_field=NAME"
        )
    return graded
