"""The experiment's numbers in one JSON file and as Markdown tables, with intervals from `decant.stats`."""

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablation.calibration import calibration, squared_errors
from ablation.cells import ARMS, Cell, Experiment
from ablation.plot import length_plot
from ablation.stages import Workshop
from decant.dataset import read_good_rows
from decant.files import write_json, write_text
from decant.hardware import describe_commit, describe_machine, describe_versions
from decant.stats import PairedDifference, paired_difference, wilson


@dataclass(frozen=True, slots=True)
class Outcome:
    """One scored student: 1 or 0 for each test problem, in the order of the test file."""

    cell: Cell
    correct: tuple[int, ...]
    lengths: tuple[int, ...]
    training: dict[str, Any]
    curation: dict[str, Any]
    confidences: tuple[float, ...] = ()

    def of_length(self, length: int) -> list[int]:
        """The outcomes on the problems of one length."""
        return [right for right, this in zip(self.correct, self.lengths, strict=True) if this == length]

    def to_dict(self) -> dict[str, Any]:
        """What the results file keeps of it."""
        interval = wilson(sum(self.correct), len(self.correct))
        return {
            "world": self.cell.world,
            "arm": self.cell.arm.name,
            "seed": self.cell.seed,
            "n": len(self.correct),
            "accuracy": sum(self.correct) / len(self.correct),
            "interval": [interval.low, interval.high],
            "by_length": {
                str(length): {"n": len(rights), "correct": sum(rights)}
                for length in sorted(set(self.lengths))
                for rights in [self.of_length(length)]
            },
            **(
                {"calibration": calibration(self.confidences, self.correct).to_dict()}
                if self.confidences
                else {}
            ),
            "correct": "".join(str(right) for right in self.correct),
            "training": {key: self.training[key] for key in ("tokens", "steps", "wall_s", "rows")},
            "loss_curve": self.training["loss_curve"],
            "labels": {key: self.curation[key] for key in ("rows_in", "prompts_in", "rows_out", "right")},
        }


# World, arm, and the arm against the first one.
_Difference = tuple[str, str, PairedDifference]


def write_report(workshop: Workshop, experiment: Experiment, cells: Sequence[Cell], *, folder: Path) -> Path:
    """Writes `ablation-EXPERIMENT.json`, `.svg` and `.md` and returns the latter."""
    outcomes = [_read(workshop, cell) for cell in cells]
    scored = [outcome.to_dict() for outcome in outcomes]
    differences = _differences(outcomes, experiment)
    document = {
        "experiment": experiment,
        "command": shlex.join(["python", "-m", "ablation", *sys.argv[1:]]),
        "machine": describe_machine(),
        "versions": describe_versions(),
        "commit": describe_commit(Path(__file__).parent),
        "settings": {name: dict(table) for name, table in workshop.settings.items()},
        "cells": scored,
        "differences": [
            {"world": world, "arm": arm, **_difference_to_dict(difference)}
            for world, arm, difference in differences
        ],
    }
    write_json(folder / f"ablation-{experiment}.json", document)
    write_text(folder / f"ablation-{experiment}.svg", length_plot(scored))
    markdown = folder / f"ablation-{experiment}.md"
    write_text(markdown, _markdown(outcomes, experiment, differences, document))
    return markdown


def _read(workshop: Workshop, cell: Cell) -> Outcome:
    folder = workshop.folder / "cells" / cell.name
    predictions = [row.fields for row in read_good_rows(folder / "predictions.jsonl")]
    rows = workshop.world(cell.world) / cell.arm.rows
    return Outcome(
        cell=cell,
        correct=tuple(int(prediction["correct"]) for prediction in predictions),
        lengths=tuple(prediction["length"] for prediction in predictions),
        training=json.loads((folder / "cell.json").read_bytes())["training"],
        curation=json.loads((rows / "curation.json").read_bytes()),
        # Predictions of earlier runs have no confidence.
        confidences=tuple(p["confidence"] for p in predictions if "confidence" in p),
    )


def _differences(outcomes: Sequence[Outcome], experiment: Experiment) -> list[_Difference]:
    """Every arm against the first, problem by problem; a problem's outcome is its mean over the seeds.

    Problems are what is resampled: three students that all fail one problem are one failure, not three.
    """
    found: list[_Difference] = []
    first, *others = [arm.name for arm in ARMS[experiment]]
    for world in _distinct(outcomes, lambda outcome: outcome.cell.world):
        for arm in others:
            before, after = _mean_by_problem(outcomes, world, first), _mean_by_problem(outcomes, world, arm)
            found.append((world, arm, paired_difference(before, after, seed=0)))
    return found


def _mean_by_problem(outcomes: Sequence[Outcome], world: str, arm: str) -> list[float]:
    columns = [outcome.correct for outcome in _of(outcomes, world, arm)]
    return [sum(rights) / len(rights) for rights in zip(*columns, strict=True)]


def _of(outcomes: Sequence[Outcome], world: str, arm: str) -> list[Outcome]:
    return [o for o in outcomes if o.cell.world == world and o.cell.arm.name == arm]


def _difference_to_dict(difference: PairedDifference) -> dict[str, Any]:
    return {
        "mean": difference.mean,
        "interval": [difference.interval.low, difference.interval.high],
        "n": difference.n,
        "gained": difference.gained,
        "lost": difference.lost,
        "method": difference.method,
    }


def _markdown(
    outcomes: Sequence[Outcome],
    experiment: Experiment,
    differences: Sequence[_Difference],
    document: dict[str, Any],
) -> str:
    seeds = _distinct(outcomes, lambda outcome: outcome.cell.seed)
    parts = [
        f"# Ablation: {experiment}",
        _preamble(document),
        f"![accuracy by length](ablation-{experiment}.svg)",
        "## Accuracy, seed by seed (Wilson intervals)",
        _table(
            [
                "world",
                "arm",
                *(f"seed {seed}" for seed in seeds),
                "mean",
                "rows",
                "of prompts",
                "right among them",
            ],
            [_accuracy_row(_of(outcomes, world, arm)) for world, arm in _rows(outcomes)],
        ),
        f"## Against {ARMS[experiment][0].name} (points, paired by problem, mean of the seeds)",
        _table(
            ["world", "arm", "difference", "n"],
            [[world, arm, _points(found), str(found.n)] for world, arm, found in differences],
        ),
    ]
    if experiment == "scores":
        parts += _calibration_table(outcomes)
    for world in _distinct(outcomes, lambda outcome: outcome.cell.world):
        parts += [
            f"## {world}: accuracy by length (all seeds' answers together)",
            _by_length(outcomes, world),
        ]
    return "\n\n".join(parts) + "\n"


def _preamble(document: dict[str, Any]) -> str:
    budget = document["settings"]["train"]["token_budget"]
    return (
        f"Students trained on {budget:,} tokens each, greedy answers, 95 % intervals."
        f" {document['machine']['cpu']}, {document['settings']['train']['threads']} thread per student;"
        f" commit {document['commit']}; `{document['command']}`. The seeds answer the same test problems:"
        " intervals over all seeds' answers take each of them for a problem of its own."
    )


def _accuracy_row(arm: Sequence[Outcome]) -> list[str]:
    one = arm[0]
    rates = [sum(outcome.correct) / len(outcome.correct) for outcome in arm]
    right, known = (one.curation["right"][key] for key in ("kept_right", "kept_with_gold"))
    return [
        one.cell.world,
        one.cell.arm.name,
        *(_rate(outcome.correct) for outcome in arm),
        f"{100 * sum(rates) / len(rates):.1f}",
        str(one.curation["rows_out"]),
        str(one.curation["prompts_in"]),
        f"{100 * right / known:.1f} %" if known else "unknown",
    ]


def _calibration_table(outcomes: Sequence[Outcome]) -> list[str]:
    return [
        "## Calibration: greedy answers against the share of sampled ones that agree (lower is better)",
        _table(
            ["world", "arm", "ECE", "Brier score", "log loss", "Brier score against the first"],
            [_calibration_row(outcomes, world, arm) for world, arm in _rows(outcomes)],
        ),
    ]


def _calibration_row(outcomes: Sequence[Outcome], world: str, arm: str) -> list[str]:
    found = [calibration(o.confidences, o.correct) for o in _of(outcomes, world, arm)]
    readings = [[one.ece for one in found], [one.brier for one in found], [one.log_loss for one in found]]
    means = [sum(values) / len(values) for values in readings]
    first = outcomes[0].cell.arm.name
    change = "–"
    if arm != first:
        pair = [_mean_squared_errors(outcomes, world, name) for name in (first, arm)]
        change = _scaled(paired_difference(*pair, seed=0), factor=1, digits=4)
    return [world, arm, *(f"{mean:.4f}" for mean in means), change]


def _mean_squared_errors(outcomes: Sequence[Outcome], world: str, arm: str) -> list[float]:
    columns = [squared_errors(o.confidences, o.correct) for o in _of(outcomes, world, arm)]
    return [sum(errors) / len(errors) for errors in zip(*columns, strict=True)]


def _by_length(outcomes: Sequence[Outcome], world: str) -> str:
    arms = _distinct([o for o in outcomes if o.cell.world == world], lambda outcome: outcome.cell.arm.name)
    lengths = sorted({length for o in outcomes if o.cell.world == world for length in o.lengths})
    rows = [
        [
            str(length),
            *(
                _rate([r for outcome in _of(outcomes, world, arm) for r in outcome.of_length(length)])
                for arm in arms
            ),
        ]
        for length in lengths
    ]
    return _table(["length", *arms], rows)


def _rate(rights: Sequence[int]) -> str:
    interval = wilson(sum(rights), len(rights))
    return f"{100 * sum(rights) / len(rights):.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _points(difference: PairedDifference) -> str:
    return _scaled(difference, factor=100, digits=1)


def _scaled(difference: PairedDifference, *, factor: float, digits: int) -> str:
    mean, low, high = (
        f"{factor * value:+.{digits}f}"
        for value in (difference.mean, difference.interval.low, difference.interval.high)
    )
    return f"{mean} [{low}, {high}]"


def _rows(outcomes: Sequence[Outcome]) -> list[tuple[str, str]]:
    return _distinct(outcomes, lambda outcome: (outcome.cell.world, outcome.cell.arm.name))


def _distinct(outcomes: Sequence[Outcome], key: Callable[[Outcome], Any]) -> list[Any]:
    return list(dict.fromkeys(key(outcome) for outcome in outcomes))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
