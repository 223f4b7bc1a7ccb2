"""Placements compared on one's own rows: equal tokens, the same held-out rows, an honest verdict."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")

from decant.artifact import read_manifest
from decant.errors import ConfigError, TrainingError
from decant.stats import paired_difference
from decant_distill.train.ablate import AblateConfig, Arm, report, run, verdict

SETTINGS = {"batch_tokens": 512, "learning_rate": 1e-3, "golden_rows": 1, "golden_tokens": 2, "threads": 1}


def config(base: Path, data: Path, output: Path, **changes: Any) -> AblateConfig:
    settings = {"token_budget": 500, "dev_rows": 8, "train": SETTINGS, **changes}
    return AblateConfig.model_validate({"base": base, "data": data, "output": output, **settings})


def test_every_placement_learns_from_one_slice_and_answers_the_other(
    student_base: Path, curated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = config(student_base, curated, tmp_path / "a")
    run(given)
    document = json.loads((tmp_path / "a" / "ablate.json").read_text())
    tokens = [
        (read_manifest(tmp_path / "a" / f"{name}-0").training or {})["tokens"] for name in given.placements
    ]
    assert len(document["arms"]) == 4
    assert all(500 <= spent < 500 + 512 for spent in tokens)
    prompts = [
        {json.dumps(json.loads(line)["prompt"]) for line in (tmp_path / "a" / name).read_text().splitlines()}
        for name in ("train.jsonl", "dev.jsonl")
    ]
    assert not prompts[0] & prompts[1]
    capsys.readouterr()
    run(given)
    assert "steps" not in capsys.readouterr().out, "what is trained is not trained again"


def test_students_of_other_settings_are_not_taken_for_these(
    student_base: Path, curated: Path, tmp_path: Path
) -> None:
    two = ("answer_only", "rationale_then_answer")
    run(config(student_base, curated, tmp_path / "a", placements=two))
    with pytest.raises(TrainingError, match="trained with other settings"):
        run(config(student_base, curated, tmp_path / "a", placements=two, token_budget=700))


def test_a_misspelt_option_of_training_is_named(student_base: Path, curated: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean learning_rate"):
        run(config(student_base, curated, tmp_path / "a", train={"learning_rat": 1}))


def arm(placement: Any, *outcomes: float) -> Arm:
    return Arm(placement=placement, outcomes=outcomes, losses=(1.0,))


def test_a_placement_wins_only_when_all_others_are_shown_to_be_worse() -> None:
    best = arm("rationale_then_answer", *[1.0] * 40)
    worse, level = arm("answer_only", *[0.0] * 40), arm("multitask", *[1.0] * 39, 0.0)
    found = {a.placement: paired_difference(best.outcomes, a.outcomes, seed=0) for a in (worse, level)}
    assert verdict(best, {"answer_only": found["answer_only"]}).startswith("rationale_then_answer won")
    assert "not shown to be better than multitask" in verdict(best, found)
    lines = report([best, worse, level], best, found).splitlines()
    assert lines[3].split() == ["answer_only", "0.0", "[0.0,", "8.8]", "-100.0", "[-100.0,", "-82.5]"]
