"""Students from nested parts of the labels, and the word on whether more of them would pay."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")

from decant.stats import paired_difference
from decant_distill.train.learning_curve import LearningCurveConfig, run, verdict

NOTHING, LITTLE = [0.0] * 400, [1.0] * 10 + [0.0] * 390


def test_the_word_follows_the_interval_of_the_last_step() -> None:
    much = paired_difference(NOTHING, [1.0] * 200 + [0.0] * 200, seed=0)
    none = paired_difference(NOTHING, NOTHING, seed=0)
    little = paired_difference(NOTHING, LITTLE, seed=0)
    assert verdict(much, worth=0.01).startswith("more labels pay")
    assert verdict(none, worth=0.02).startswith("more labels do not pay")
    assert verdict(little, worth=0.02).startswith("undecided")


@pytest.mark.parametrize("shares", [(1.0,), (0.5, 0.9), (1.0, 0.5), (0.0, 1.0)])
def test_parts_that_do_not_rise_to_all_labels_are_refused(shares: tuple[float, ...], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rising parts that end with"):
        LearningCurveConfig(base=tmp_path, data=tmp_path, output=tmp_path / "c", shares=shares)


def test_each_part_lies_within_the_next_and_the_held_out_rows_in_none(
    student_base: Path, curated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {
        "method": "lora",
        "compute_dtype": "float32",
        "learning_rate": 3e-3,
        "batch_tokens": 512,
        "epochs": 1.0,
        "golden_rows": 1,
        "golden_tokens": 4,
        "usd_per_label": 0.01,
        "threads": 1,
    }
    run(LearningCurveConfig(base=student_base, data=curated, output=tmp_path / "c", **settings))
    parts = [
        {
            json.loads(line)["id"]
            for line in (tmp_path / "c" / f"labels-{share}.jsonl").read_text().splitlines()
        }
        for share in ("0.25", "0.5", "1")
    ]
    assert [len(part) for part in parts] == [40, 80, 160]
    assert parts[0] < parts[1] < parts[2]
    found = json.loads((tmp_path / "c" / "learning-curve.json").read_text())
    assert [len(point["outcomes"]) for point in found["points"]] == [40, 40, 40]
    means = [point["mean"] for point in found["points"]]
    assert means == sorted(means)
    said = capsys.readouterr().out
    assert "160 more cost $1.60" in said
    assert "more labels pay" in said
