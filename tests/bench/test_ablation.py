"""The ablation's report: every seed with its interval, arms compared problem by problem."""

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from ablation.calibration import calibration
from ablation.cells import Cell, cells_of
from ablation.report import write_report
from ablation.stages import Workshop

RIGHT = {"answer_only": "1000", "rationale_then_answer": "1110", "answer_then_rationale": "1000"}


def write_cell(workshop: Workshop, cell: Cell, *, outcomes: str, confidence: float = 0.5) -> None:
    folder = workshop.folder / "cells" / cell.name
    folder.mkdir(parents=True)
    rows = [
        {"correct": right == "1", "length": 2 + i % 2, "confidence": confidence}
        for i, right in enumerate(outcomes)
    ]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    training = {"tokens": 10, "steps": 1, "wall_s": 1.0, "rows": {}, "loss_curve": []}
    (folder / "cell.json").write_text(json.dumps({"training": training}))
    curated = workshop.world(cell.world) / cell.arm.rows
    curated.mkdir(parents=True, exist_ok=True)
    right = {"kept_right": 3, "kept_with_gold": 4}
    (curated / "curation.json").write_text(
        json.dumps({"rows_in": 32, "prompts_in": 8, "rows_out": 4, "right": right})
    )


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    settings = {"train": {"token_budget": 10, "threads": 1}, "merge": {}}
    return Workshop(folder=tmp_path / "work", settings=settings, max_tokens=8)


def test_arms_are_compared_with_the_first_over_the_same_problems(workshop: Workshop, tmp_path: Path) -> None:
    cells = cells_of("placements", worlds=["counter"], seeds=[0, 1])
    for cell in cells:
        write_cell(workshop, cell, outcomes=RIGHT[cell.arm.name])
    text = write_report(workshop, "placements", cells, folder=tmp_path / "results").read_text()
    document = json.loads((tmp_path / "results" / "ablation-placements.json").read_text())
    found = {difference["arm"]: difference for difference in document["differences"]}
    assert (found["rationale_then_answer"]["mean"], found["rationale_then_answer"]["n"]) == (0.5, 4)
    assert found["answer_then_rationale"]["mean"] == 0
    assert [cell["correct"] for cell in document["cells"][:3]] == list(RIGHT.values())
    assert (
        "| counter | rationale_then_answer | 75.0 [30.1, 95.4] | 75.0 [30.1, 95.4] | 75.0 | 4 | 8 |" in text
    )
    assert "| 2 | 50.0 [15.0, 85.0] | 100.0 [51.0, 100.0] |" in text
    plot = (tmp_path / "results" / "ablation-placements.svg").read_text()
    assert ET.fromstring(plot).tag.endswith("svg")
    assert plot.count('class="whisker"') == 2 * 3, "an interval for each length and arm"


def test_an_early_stop_leaves_whole_comparisons() -> None:
    cells = cells_of("filters", worlds=["counter", "swap"], seeds=[0, 1])
    assert {cell.seed for cell in cells[:6]} == {0}
    assert {(cell.world, cell.arm.name) for cell in cells[:6]} == {(c.world, c.arm.name) for c in cells[6:]}


def test_a_student_that_is_right_as_often_as_it_says_is_calibrated() -> None:
    found = calibration([0.75, 0.75, 0.75, 0.75, 0.0], [1, 1, 1, 0, 0])
    assert (found.ece, found.brier) == (0.0, pytest.approx((3 * 0.0625 + 0.5625) / 5))


def test_a_student_that_is_always_sure_and_half_right_is_half_off() -> None:
    found = calibration([1.0] * 4, [1, 0, 1, 0])
    assert (found.ece, found.brier) == (0.5, 0.5)
    assert found.log_loss > 5


def test_scores_are_compared_by_accuracy_and_calibration(workshop: Workshop, tmp_path: Path) -> None:
    cells = cells_of("scores", worlds=["counter"], seeds=[0])
    for cell, confidence in zip(cells, (0.9, 0.75, 0.75), strict=True):
        write_cell(workshop, cell, outcomes="1110", confidence=confidence)
    text = write_report(workshop, "scores", cells, folder=tmp_path / "results").read_text()
    assert "| counter | cross_entropy | 0.1500 |" in text
    assert "| counter | topk | 0.0000 |" in text
    assert len({cell.name for cell in cells}) == 3
