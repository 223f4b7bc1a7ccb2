"""`decant baseline`: learns from curated labels or gold, and writes what `decant eval` writes."""

import json
from pathlib import Path
from typing import Any

import pytest

from decant.config import load_config
from decant.errors import DataError
from decant_bench.predictions import PredictionFolder, read_predictions
from decant_distill.baseline import BaselineConfig, run

pytest.importorskip("sklearn")

ANIMALS = ["cat", "dog", "horse", "sheep", "goat", "duck"]
TOOLS = ["hammer", "saw", "drill", "pliers", "chisel", "wrench"]


def texts(words: list[str], template: str) -> list[str]:
    return [template.format(word) for word in words]


def gold_rows() -> list[dict[str, Any]]:
    pairs = [(word, "animal", "The {} eats grass") for word in ANIMALS] + [
        (word, "tool", "A {} made of steel") for word in TOOLS
    ]
    return [{"id": word, "text": template.format(word), "label": gold} for word, gold, template in pairs]


def curated_rows() -> list[dict[str, Any]]:
    return [
        {"id": row["id"], "prompt": [{"role": "user", "content": row["text"]}], "answer": row["label"]}
        for row in gold_rows()
    ]


EXAM: list[Any] = [
    {"id": "1", "text": "The cow eats grass", "label": "animal", "group": "farm", "length": 4},
    {"id": "2", "text": "A file made of steel", "label": "tool"},
    {"id": "3", "text": "A spoon made of steel", "label": "cutlery"},
]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def answer(folder: Path, train: list[Any], exam: list[Any], **changes: Any) -> PredictionFolder:
    values = {
        "train": write(folder / "train.jsonl", train),
        "data": write(folder / "test.jsonl", exam),
        "output": folder / "baseline",
        "task": {"prompt": "{text}", "gold_field": "label"},
        **changes,
    }
    run(load_config(BaselineConfig, values=values))
    return read_predictions(folder / "baseline")


@pytest.mark.parametrize("train", [gold_rows(), curated_rows()], ids=["gold", "curated"])
def test_it_learns_and_is_read_by_the_ledger(tmp_path: Path, train: list[Any]) -> None:
    found = answer(tmp_path, train, EXAM)
    assert [(one.id, one.answer, one.correct) for one in found.predictions] == [
        ("1", "animal", True),
        ("2", "tool", True),
        ("3", "tool", False),
    ]
    assert (found.predictions[0].group, found.predictions[0].length) == ("farm", 4)
    assert (found.evaluation.stage, found.evaluation.engine, found.evaluation.n) == (
        "baseline",
        "scikit-learn",
        3,
    )
    assert (found.evaluation.model.size_bytes or 0) > 1000


def test_every_prediction_is_timed_by_itself(tmp_path: Path) -> None:
    timings = [one.request_timing for one in answer(tmp_path, gold_rows(), EXAM).predictions]
    started = [timing.actual_s for timing in timings if timing]
    assert started == sorted(started)
    assert all(timing and timing.ok and 0 < (timing.e2e_s or 0) < 1 for timing in timings)
    assert len({timing.e2e_s for timing in timings if timing}) > 1


def test_bad_lines_and_repeated_ids_are_failed_predictions(tmp_path: Path) -> None:
    exam = [*EXAM, "{half", {"id": "9", "label": "tool"}, EXAM[0]]
    found = answer(tmp_path, [*gold_rows(), "{half"], exam)
    failed = [(one.id, one.status, one.correct) for one in found.predictions[3:]]
    assert failed == [("line-4", "failed", None), ("9", "failed", None), ("1 (line 6)", "failed", None)]
    assert found.evaluation.counts["errors"] == {"bad_row": 3}


def test_the_same_seed_gives_the_same_answers(tmp_path: Path) -> None:
    first = [one.answer for one in answer(tmp_path, gold_rows(), EXAM).predictions]
    assert [one.answer for one in answer(tmp_path, gold_rows(), EXAM).predictions] == first


def test_one_answer_teaches_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two answers or more"):
        answer(tmp_path, gold_rows()[:3], EXAM)


def test_a_misnamed_gold_field_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="12 that have none"):
        answer(tmp_path, gold_rows(), EXAM, task={"prompt": "{text}", "gold_field": "section"})
