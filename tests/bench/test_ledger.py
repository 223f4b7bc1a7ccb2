import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from decant.artifact import write_manifest
from decant.cli import main
from decant.config import load_config
from decant.errors import ConfigError, DataError, GateError
from decant_bench.ledger import run
from decant_bench.ledger_config import LedgerConfig
from tests.bench.stages import Asked, write_stage

Z = 1.959963984540054


def outcomes(right: int, n: int = 40, **fields: Any) -> list[Asked]:
    """The first `right` of n requests answered rightly."""
    return [Asked(f"r{i}", gold="7", answer="7" if i < right else "3", **fields) for i in range(n)]


def build(folder: Path, stages: list[dict[str, Any]], **values: Any) -> dict[str, Any]:
    """Runs the ledger and returns ledger.json; NaN in it is an error."""
    config = {"stages": stages, "teacher": "teacher", "output": folder / "ledger", "title": "Test"}
    run(load_config(LedgerConfig, values=config | values))
    return read(folder)


def read(folder: Path) -> dict[str, Any]:
    text = (folder / "ledger" / "ledger.json").read_text(encoding="utf-8")
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in ledger.json"))


def two_stages(folder: Path, **student: Any) -> list[dict[str, Any]]:
    """A teacher with 36 of 40 right, and a student that lost the last 6 of those."""
    teacher = write_stage(folder / "teacher", outcomes(36))
    learned = write_stage(folder / "student", outcomes(30))
    return [
        {"name": "teacher", "eval": teacher},
        {"name": "student", "eval": learned, "parent": "teacher", **student},
    ]


def test_accuracy_has_wilsons_interval(tmp_path: Path) -> None:
    accuracy = build(tmp_path, two_stages(tmp_path))["rows"][0]["accuracy"]

    assert (accuracy["value"], accuracy["successes"], accuracy["n"]) == (0.9, 36, 40)
    for bound in accuracy["interval"].values():  # where the normal score test just rejects
        assert 40 * (0.9 - bound) ** 2 == pytest.approx(Z**2 * bound * (1 - bound))


def test_the_difference_is_paired_with_an_exact_mcnemar_test(tmp_path: Path) -> None:
    difference = build(tmp_path, two_stages(tmp_path))["rows"][1]["difference"]

    assert (difference["to"], difference["basis"]) == ("teacher", "accuracy")
    paired = difference["paired"]
    assert paired["mean"] == pytest.approx(-6 / 40)
    assert (paired["gained"], paired["lost"], paired["n"]) == (0, 6, 40)
    assert paired["p_value"] == pytest.approx(2 * 0.5**6)
    assert paired["interval"]["low"] < -0.15 < paired["interval"]["high"] < 0


def test_agreement_counts_equal_answers_right_or_wrong(tmp_path: Path) -> None:
    rows = build(tmp_path, two_stages(tmp_path))["rows"]

    assert rows[0]["agreement"] is None
    assert (rows[1]["agreement"]["successes"], rows[1]["agreement"]["n"]) == (34, 40)


def test_a_loss_beyond_the_allowance_is_named_and_the_gate_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages = two_stages(tmp_path, allowance=0.02)
    config = {"stages": stages, "teacher": "teacher", "output": tmp_path / "ledger"}
    (tmp_path / "c.json").write_text(json.dumps(config, default=str), encoding="utf-8")

    assert main(["ledger", "--config", str(tmp_path / "c.json")]) == 0
    assert main(["ledger", "--config", str(tmp_path / "c.json"), "--gate"]) == 2
    assert "student changes accuracy by −15.0 points against teacher" in capsys.readouterr().err
    loss = read(tmp_path)["losses"][0]
    assert (loss["stage"], loss["loss"], loss["allowance"]) == ("student", pytest.approx(0.15), 0.02)


def test_the_gate_lets_a_stage_within_its_allowance_pass(tmp_path: Path) -> None:
    ledger = build(tmp_path, two_stages(tmp_path, allowance=0.2), gate=True)

    assert (ledger["rows"][1]["verdict"], ledger["losses"]) == ("within", [])


def test_a_loss_that_chance_explains_is_unclear_unless_it_must_be_excluded(tmp_path: Path) -> None:
    teacher = write_stage(tmp_path / "teacher", outcomes(38))
    student = write_stage(tmp_path / "student", outcomes(36))
    stages = [
        {"name": "teacher", "eval": teacher},
        {"name": "student", "eval": student, "parent": "teacher", "allowance": 0.02},
    ]

    assert build(tmp_path, stages, gate=True)["rows"][1]["verdict"] == "unclear"
    with pytest.raises(GateError, match="student changes accuracy by −5"):
        build(tmp_path, stages, gate=True, gate_rule="non_inferior")


def test_percentiles_count_response_from_due_and_service_from_sent(tmp_path: Path) -> None:
    asked = [Asked(f"r{i}", "7", "7", e2e_s=0.01 * (i + 1)) for i in range(40)]
    teacher = write_stage(tmp_path / "teacher", asked)
    latency = build(tmp_path, [{"name": "teacher", "eval": teacher}])["rows"][0]["latency"]

    assert latency["e2e_service_s"]["p50"] == pytest.approx(0.205)
    assert latency["e2e_response_s"]["p50"] == pytest.approx(0.215)
    assert latency["e2e_service_s"]["p95"] == pytest.approx(0.3805)
    assert latency["ttft_response_s"]["p50"] == pytest.approx(0.1025 + 0.01)


def test_failed_requests_are_wrong_counted_and_have_no_latency(tmp_path: Path) -> None:
    asked = [*outcomes(30, n=30), *(Asked(f"f{i}", "7", None) for i in range(10))]
    ledger = build(tmp_path, [{"name": "teacher", "eval": write_stage(tmp_path / "teacher", asked)}])
    row = ledger["rows"][0]

    assert (row["accuracy"]["successes"], row["accuracy"]["n"]) == (30, 40)
    assert row["requests"]["failed"] == 10
    assert row["requests"]["errors"] == {"timeout": 10}
    assert row["latency"]["e2e_response_s"]["n"] == 30
    assert "teacher: 10 of 40 requests failed (timeout 10); each counts as wrong." in ledger["notes"]


def test_only_requests_that_every_stage_was_asked_are_compared(tmp_path: Path) -> None:
    teacher = write_stage(tmp_path / "teacher", outcomes(36))
    student = write_stage(tmp_path / "student", outcomes(30)[:35])
    ledger = build(
        tmp_path,
        [{"name": "teacher", "eval": teacher}, {"name": "student", "eval": student, "parent": "teacher"}],
    )

    assert ledger["requests"] == 35
    assert (ledger["rows"][0]["accuracy"]["successes"], ledger["rows"][0]["accuracy"]["n"]) == (35, 35)
    assert ledger["rows"][1]["requests"]["missing"] == 5
    assert any("student: lacks 5 requests" in note for note in ledger["notes"])


def test_requests_without_gold_are_compared_by_agreement(tmp_path: Path) -> None:
    teacher = write_stage(tmp_path / "teacher", [Asked(f"r{i}", None, "a") for i in range(20)])
    student = write_stage(tmp_path / "student", [Asked(f"r{i}", None, "a" if i else "b") for i in range(20)])
    row = build(
        tmp_path,
        [{"name": "teacher", "eval": teacher}, {"name": "student", "eval": student, "parent": "teacher"}],
    )["rows"][1]

    assert row["accuracy"] is None
    assert row["agreement"]["value"] == 0.95
    assert row["difference"]["basis"] == "agreement"
    assert row["difference"]["paired"]["mean"] == pytest.approx(-0.05)


def test_stages_of_different_datasets_are_refused(tmp_path: Path) -> None:
    teacher = write_stage(tmp_path / "teacher", outcomes(3, n=3))
    other_ids = write_stage(tmp_path / "a", [Asked("x", "7", "7")])
    other_gold = write_stage(tmp_path / "b", [Asked("r1", "8", "8")])

    with pytest.raises(DataError, match="share no request id"):
        build(tmp_path, [{"name": "teacher", "eval": teacher}, {"name": "student", "eval": other_ids}])
    with pytest.raises(DataError, match="request r1: gold is '7' for stage teacher and '8' for student"):
        build(tmp_path, [{"name": "teacher", "eval": teacher}, {"name": "student", "eval": other_gold}])


def test_different_engines_are_said_per_pair(tmp_path: Path) -> None:
    teacher = write_stage(tmp_path / "teacher", outcomes(40))
    adapter = write_stage(tmp_path / "adapter", outcomes(40), engine="transformers")
    merged = write_stage(tmp_path / "merged", outcomes(40))
    ledger = build(
        tmp_path,
        [
            {"name": "teacher", "eval": teacher},
            {"name": "adapter", "eval": adapter, "parent": "teacher"},
            {"name": "merged", "eval": merged, "parent": "adapter"},
        ],
    )

    assert ledger["engine_differences"] == [["adapter", "teacher"], ["merged", "adapter"]]
    assert any(note.startswith("Engines differ (llamacpp: teacher, merged;") for note in ledger["notes"])


def test_the_loss_to_the_teacher_is_known_beside_that_to_the_parent(tmp_path: Path) -> None:
    stages = two_stages(tmp_path)
    quantized = write_stage(tmp_path / "quantized", outcomes(28))
    stages.append({"name": "quantized", "eval": quantized, "parent": "student"})
    rows = build(tmp_path, stages)["rows"]

    assert rows[2]["difference"]["paired"]["mean"] == pytest.approx(-2 / 40)
    assert rows[2]["difference_to_teacher"]["paired"]["mean"] == pytest.approx(-8 / 40)
    assert rows[0]["difference_to_teacher"] is None


def test_a_client_that_sent_late_is_said(tmp_path: Path) -> None:
    load = {"arrival": "poisson", "send_delay_s": {"p99": 0.09}}
    stages = [{"name": "teacher", "eval": write_stage(tmp_path / "teacher", outcomes(40), load=load)}]

    assert any("left 90.0 ms late or more" in note for note in build(tmp_path, stages)["notes"])


def test_another_load_is_said(tmp_path: Path) -> None:
    teacher = write_stage(tmp_path / "teacher", outcomes(40), load={"arrival": "poisson", "rate": 8.0})
    student = write_stage(tmp_path / "student", outcomes(40), load={"arrival": "poisson", "rate": 4.0})
    notes = build(tmp_path, [{"name": "teacher", "eval": teacher}, {"name": "student", "eval": student}])[
        "notes"
    ]

    assert "The load was not the same: rate 8.0 (teacher); rate 4.0 (student)." in notes


def test_accuracy_by_length_is_per_group_and_adds_up(tmp_path: Path) -> None:
    asked = [
        Asked(f"r{i}", "7", "7" if i % 3 else "3", length=i % 4, group="odd" if i % 2 else "even")
        for i in range(48)
    ]
    buckets = build(tmp_path, [{"name": "teacher", "eval": write_stage(tmp_path / "teacher", asked)}])[
        "rows"
    ][0]["by_length"]

    assert [(b["group"], b["low"]) for b in buckets] == [("even", 0), ("even", 2), ("odd", 1), ("odd", 3)]
    assert [b["share"]["n"] for b in buckets] == [12, 12, 12, 12]
    assert sum(b["share"]["successes"] for b in buckets) == 32


def test_many_lengths_become_ranges_that_hold_every_request_once(tmp_path: Path) -> None:
    asked = [Asked(f"r{i}", "7", "7", length=i // 2) for i in range(200)]
    buckets = build(tmp_path, [{"name": "teacher", "eval": write_stage(tmp_path / "teacher", asked)}])[
        "rows"
    ][0]["by_length"]

    assert sum(b["share"]["n"] for b in buckets) == 200
    assert len(buckets) == 8
    assert all(a["high"] < b["low"] for a, b in pairwise(buckets))


def test_the_size_of_an_adapter_holds_its_base(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"x" * 500)
    write_manifest(
        folder, name="a", kind="adapter", method="qlora", details={"measurements": {"base_size_bytes": 2000}}
    )
    row = build(tmp_path, two_stages(tmp_path, artifact=folder))["rows"][1]

    assert row["size_bytes"] == 2500


def test_the_golden_check_of_the_server_is_shown(tmp_path: Path) -> None:
    report = {"stage": "served", "checked": 8, "breaks": [], "max_logprob_gap": 0.2, "flips": 1}
    served = write_stage(tmp_path / "teacher", outcomes(40), model={"id": "m", "golden": report})
    golden = build(tmp_path, [{"name": "teacher", "eval": served}])["rows"][0]["golden"]

    assert golden == {"checked": 8, "kinds": [], "max_logprob_gap": 0.2, "flips": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": "techer"}, "teacher techer is no stage .did you mean teacher"),
        ({"served": "studnet"}, "served studnet is no stage .did you mean student"),
        ({"stages": []}, "stages"),
    ],
)
def test_a_config_that_names_no_stage_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(tmp_path, **{"stages": two_stages(tmp_path), **change})


def test_a_parent_stands_before_its_child(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no earlier stage teacher"):
        build(tmp_path, two_stages(tmp_path)[::-1])


def test_a_damaged_prediction_folder_is_named_by_file_and_line(tmp_path: Path) -> None:
    folder = write_stage(tmp_path / "teacher", outcomes(2, n=2))
    with (folder / "predictions.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"id": "r0", "status": "done"}\n')

    with pytest.raises(DataError, match=r"predictions.jsonl:3: request id r0 stands twice"):
        build(tmp_path, [{"name": "teacher", "eval": folder}])
    (folder / "eval.json").unlink()
    with pytest.raises(DataError, match="no prediction folder"):
        build(tmp_path, [{"name": "teacher", "eval": folder}])
