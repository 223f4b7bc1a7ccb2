"""The ledger as one value: what ledger.json holds and what the table and the page show."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from decant.hardware import describe_command, describe_commit, describe_machine, describe_versions
from decant_bench.ledger_config import GateRule, LedgerConfig
from decant_bench.ledger_notes import engine_differences, notes
from decant_bench.ledger_rows import LedgerRow, Sample, build_rows
from decant_bench.number_text import points, points_range
from decant_bench.predictions import PredictionFolder

FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class Loss:
    """A stage that lost more than its allowance, and the sentence that says so."""

    stage: str
    parent: str
    loss: float
    allowance: float
    sentence: str


@dataclass(frozen=True, slots=True)
class Ledger:
    """Every stage's row, who lost too much, and what to know before comparing."""

    title: str
    teacher: str
    served: str
    volume: int
    price_per_hour: float | None
    gate_rule: GateRule
    requests: int
    graded: int
    rows: tuple[LedgerRow, ...]
    losses: tuple[Loss, ...]
    notes: tuple[str, ...]
    engine_differences: tuple[tuple[str, str], ...]
    provenance: dict[str, Any]

    def row(self, stage: str) -> LedgerRow:
        """The row of one stage."""
        return next(row for row in self.rows if row.stage == stage)

    def to_json(self) -> dict[str, Any]:
        """The value of ledger.json."""
        return {"format_version": FORMAT_VERSION, **asdict(self)}


def build_ledger(
    config: LedgerConfig, folders: Mapping[str, PredictionFolder]
) -> tuple[Ledger, Mapping[str, Sample]]:
    """The ledger of the stages, and each stage's latencies for the plots."""
    built = build_rows(config, folders)
    ledger = Ledger(
        title=config.title,
        teacher=config.teacher,
        served=config.served_stage,
        volume=config.volume,
        price_per_hour=config.price_per_hour,
        gate_rule=config.gate_rule,
        requests=built.requests,
        graded=built.graded,
        rows=built.rows,
        losses=tuple(_loss(row) for row in built.rows if row.verdict == "lost"),
        notes=tuple(notes(built.rows, teacher=config.teacher)),
        engine_differences=tuple(engine_differences(built.rows, teacher=config.teacher)),
        provenance={
            "command": describe_command(),
            "commit": describe_commit(Path(__file__).parent),
            "hardware": describe_machine(),
            "versions": describe_versions(),
            "evaluations": {
                name: {
                    "command": folder.evaluation.command,
                    "commit": folder.evaluation.commit,
                    "versions": folder.evaluation.versions,
                }
                for name, folder in folders.items()
            },
        },
    )
    return ledger, built.samples


def _loss(row: LedgerRow) -> Loss:
    assert row.difference is not None
    assert row.allowance is not None
    assert row.parent is not None
    paired = row.difference.paired
    sentence = (
        f"{row.stage} changes {row.difference.basis} by {points(paired.mean)} points against {row.parent}"
        f" (95% interval {points_range(paired.interval)}, n {paired.n}); its allowance is"
        f" {100 * row.allowance:.1f} points"
    )
    return Loss(row.stage, row.parent, -paired.mean, row.allowance, sentence)
