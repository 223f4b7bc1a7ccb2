import json
from pathlib import Path
from typing import Any

import pytest

from decant.artifact import write_manifest
from decant.config import load_config
from decant.errors import DataError
from decant_bench.ledger import run
from decant_bench.ledger_config import LedgerConfig
from tests.bench.stages import Asked, write_stage

ASKED = [Asked(f"r{i}", "7", "7") for i in range(4)]


def trained(folder: Path, wall_s: float) -> Path:
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"x")
    write_manifest(folder, name="a", kind="adapter", method="qlora", details={"training": {"wall_s": wall_s}})
    return folder


def labeled(path: Path, **summary: Any) -> Path:
    path.write_text(json.dumps({"rows": 10, "done": 10, "failed": 0, **summary}), encoding="utf-8")
    return path


def build(folder: Path, teacher: dict[str, Any], student: dict[str, Any], **stage: Any) -> dict[str, Any]:
    """The student's row, with hardware at $3.60 per hour and 10,000 requests to serve."""
    config = {
        "stages": [
            {"name": "teacher", "eval": write_stage(folder / "teacher", ASKED, **teacher)},
            {"name": "student", "eval": write_stage(folder / "student", ASKED, **student), **stage},
        ],
        "teacher": "teacher",
        "output": folder / "ledger",
        "price_per_hour": 3.6,
        "volume": 10_000,
    }
    run(load_config(LedgerConfig, values=config))
    return json.loads((folder / "ledger" / "ledger.json").read_text(encoding="utf-8"))


def capacity(requests_per_s: float) -> dict[str, Any]:
    return {"saturation": {"requests_per_s": requests_per_s, "clients": 8}}


def test_serving_labeling_and_training_add_up_to_the_cost_of_a_request(tmp_path: Path) -> None:
    ledger = build(
        tmp_path,
        capacity(2.0),
        capacity(10.0),
        label_summary=labeled(tmp_path / "labels.summary.json", wall_s=1000.0, cost_usd=None),
        trained=trained(tmp_path / "adapter", 500.0),
    )
    teacher, student = ledger["rows"]

    assert teacher["cost"]["serving_usd_per_1000"] == pytest.approx(0.5)
    assert student["cost"]["serving_usd_per_1000"] == pytest.approx(0.1)
    assert student["cost"]["labeling_usd"] == pytest.approx(1.0)
    assert student["cost"]["training_usd"] == pytest.approx(0.5)
    assert student["cost"]["amortised_usd_per_1000"] == pytest.approx(0.15)
    assert student["cost"]["total_usd_per_1000"] == pytest.approx(0.25)
    assert student["break_even_requests"] == pytest.approx(3750)
    assert teacher["break_even_requests"] is None


def test_a_stage_that_serves_dearer_than_the_teacher_never_breaks_even(tmp_path: Path) -> None:
    ledger = build(tmp_path, capacity(2.0), capacity(1.0), trained=trained(tmp_path / "adapter", 500.0))

    assert ledger["rows"][1]["break_even_requests"] == "never"


def test_token_prices_are_the_cost_of_a_remote_teacher(tmp_path: Path) -> None:
    remote = {
        "prices": {"usd_per_million_prompt_tokens": 2.0, "usd_per_million_completion_tokens": 6.0},
        "tokens": {"prompt_mean": 100.0, "completion_mean": 50.0},
        **capacity(99.0),
    }
    cost = build(tmp_path, remote, capacity(10.0))["rows"][0]["cost"]

    assert (cost["basis"], cost["serving_usd_per_1000"]) == ("tokens", pytest.approx(0.5))


def test_labels_paid_by_the_token_cost_what_was_paid(tmp_path: Path) -> None:
    summary = labeled(tmp_path / "labels.summary.json", wall_s=1000.0, cost_usd=7.0, reused=5)
    ledger = build(tmp_path, capacity(2.0), capacity(10.0), label_summary=summary)

    assert ledger["rows"][1]["cost"]["labeling_usd"] == 7.0
    assert not any("in the store already" in note for note in ledger["notes"])


def test_machine_time_of_reused_labels_is_said_to_be_missing(tmp_path: Path) -> None:
    summary = labeled(tmp_path / "labels.summary.json", wall_s=10.0, cost_usd=None, reused=5)
    notes = build(tmp_path, capacity(2.0), capacity(10.0), label_summary=summary)["notes"]

    assert any(note.startswith("student: 5 of its labels were in the store already") for note in notes)


def test_an_unknown_cost_is_said_and_not_zero(tmp_path: Path) -> None:
    ledger = build(tmp_path, {}, capacity(10.0), trained=trained(tmp_path / "adapter", 500.0))
    teacher, student = ledger["rows"]

    assert teacher["cost"]["total_usd_per_1000"] is None
    assert student["break_even_requests"] is None
    assert any(note.startswith("No serving cost for teacher") for note in ledger["notes"])


def test_a_folder_without_training_time_cannot_be_charged(tmp_path: Path) -> None:
    folder = tmp_path / "merged"
    folder.mkdir()
    write_manifest(folder, name="m", kind="hf", method="merge")

    with pytest.raises(DataError, match="its manifest has no training time"):
        build(tmp_path, capacity(2.0), capacity(10.0), trained=folder)
