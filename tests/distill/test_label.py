"""`decant label` over HTTP: what becomes a label or a failed line, and what is never bought twice."""

from pathlib import Path

import pytest

from decant.answers import read_response
from decant.config import load_config
from decant.errors import ConfigError, DataError
from decant_distill.label import LabelConfig, run
from tests.distill.loopback_teacher import (
    Teacher,
    answer,
    config_for,
    labels,
    prompts,
    reasoned,
    summary,
)


def test_a_label_holds_the_reasoning_and_the_answer_apart(teacher: Teacher, tmp_path: Path) -> None:
    rows = [{"id": "one", "prompt": "abc", "gold": "ABC", "group": "g", "length": 3}]
    config = config_for(teacher, tmp_path, rows)
    run(config)
    (label,) = labels(config)
    assert (label["status"], label["reasoning"], label["answer"]) == ("done", "because of abc", "ABC")
    assert (label["id"], label["gold"], label["group"], label["length"]) == ("one", "ABC", "g", 3)
    assert label["prompt"] == [{"role": "user", "content": "abc"}]
    assert (label["prompt_tokens"], label["completion_tokens"], label["cost_usd"]) == (10, 5, None)
    assert label["latency_s"] > 0


def test_reasoning_from_a_field_of_its_own_is_kept(teacher: Teacher, tmp_path: Path) -> None:
    teacher.reply = lambda prompt, body: answer("Answer: 4", reasoning="2 and 2")
    config = config_for(teacher, tmp_path, prompts("2+2"))
    run(config)
    (label,) = labels(config)
    assert (label["reasoning"], label["answer"]) == ("2 and 2", "4")


def test_labels_come_out_in_dataset_order_with_every_sample(teacher: Teacher, tmp_path: Path) -> None:
    config = config_for(teacher, tmp_path, prompts("a", "b", "c"), samples=2, temperature=0.7)
    run(config)
    assert [(label["id"], label["sample"]) for label in labels(config)] == [
        (row, sample) for row in "abc" for sample in (0, 1)
    ]
    assert len({body["seed"] for body in teacher.bodies}) == 6


def test_no_more_requests_are_in_flight_than_asked(teacher: Teacher, tmp_path: Path) -> None:
    teacher.delay_s = 0.02
    run(config_for(teacher, tmp_path, prompts(*(f"p{i}" for i in range(20))), concurrency=4))
    assert teacher.most_in_flight == 4


def test_a_rerun_asks_nothing_again(teacher: Teacher, tmp_path: Path) -> None:
    config = config_for(teacher, tmp_path, prompts("a", "b"))
    run(config)
    before = config.output.read_bytes()
    run(config)
    assert len(teacher.bodies) == 2
    assert config.output.read_bytes() == before
    assert summary(config)["reused"] == 2


def test_a_shuffled_and_extended_dataset_pays_for_the_new_row_only(teacher: Teacher, tmp_path: Path) -> None:
    run(config_for(teacher, tmp_path, [{"prompt": text} for text in "abc"]))
    config = config_for(teacher, tmp_path, [{"prompt": text} for text in "cdab"])
    run(config)
    assert teacher.seen[3:] == ["d"]
    assert [label["answer"] for label in labels(config)] == list("CDAB")


def test_equal_rows_are_asked_once_and_both_labeled(teacher: Teacher, tmp_path: Path) -> None:
    rows = [{"id": "first", "prompt": "same"}, {"id": "second", "prompt": "same"}]
    config = config_for(teacher, tmp_path, rows, endpoint={"usd_per_million_completion_tokens": 1e6})
    run(config)
    assert teacher.seen == ["same"]
    assert [label["id"] for label in labels(config)] == ["first", "second"]
    assert summary(config)["cost_usd"] == pytest.approx(5)


def test_an_answer_cut_at_max_tokens_is_never_a_label(teacher: Teacher, tmp_path: Path) -> None:
    teacher.reply = lambda prompt, body: (
        answer("Answer: 4", finish_reason="length") if prompt == "cut" else reasoned(prompt, body)
    )
    config = config_for(teacher, tmp_path, prompts("cut", "whole"))
    run(config)
    cut, whole = labels(config)
    assert (cut["status"], cut["error_class"], cut["answer"]) == ("failed", "length", None)
    assert (cut["finish_reason"], cut["response"], whole["status"]) == ("length", "Answer: 4", "done")


@pytest.mark.parametrize("finish_reason", ["content_filter", "tool_calls", None])
def test_an_answer_that_did_not_end_by_itself_is_no_label(finish_reason: str | None) -> None:
    config = load_config(LabelConfig, values={"data": "d", "output": "o", "endpoint": {"serve": "m"}})
    reading = read_response("Answer: 4", finish_reason, config.task)
    assert (reading.answer, reading.error_class) == (None, finish_reason or "unfinished")


def test_an_answer_without_the_marker_fails_and_a_mended_marker_costs_nothing(
    teacher: Teacher, tmp_path: Path
) -> None:
    teacher.reply = lambda prompt, body: answer("Result: 4")
    config = config_for(teacher, tmp_path, prompts("2+2"))
    with pytest.raises(DataError, match=r"no row got a label \(no_answer 1\)"):
        run(config)
    assert labels(config)[0]["error_class"] == "no_answer"
    mended = config.with_changes(task=config.task.with_changes(answer_marker="Result:"))
    run(mended)
    assert (labels(mended)[0]["answer"], len(teacher.bodies)) == ("4", 1)


def test_bad_rows_are_failed_rows_with_their_line_and_the_rest_goes_on(
    teacher: Teacher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        *prompts("a"),
        "{not json",
        {"id": "x", "text": "no prompt"},
        '{"prompt": "\\ud800"}',
        *prompts("b"),
    ]
    config = config_for(teacher, tmp_path, rows, samples=2, temperature=1.0)
    run(config)
    written = labels(config)
    assert [label["line"] for label in written] == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    failed = [label for label in written if label["status"] == "failed"]
    assert {label["error_class"] for label in failed} == {"bad_row"}
    assert all(label["error"].startswith(f"line {label['line']}: ") for label in failed)
    assert "6 failed: bad_row 6" in capsys.readouterr().out


def test_several_samples_at_temperature_zero_are_refused() -> None:
    values = {"data": "d", "output": "o", "endpoint": {"serve": "m"}, "samples": 4}
    with pytest.raises(ConfigError, match="raise temperature"):
        load_config(LabelConfig, values=values)


def test_gold_stays_out_when_the_data_plays_unlabeled(teacher: Teacher, tmp_path: Path) -> None:
    config = config_for(teacher, tmp_path, [{"prompt": "a", "gold": "A"}], drop_gold=True, limit=1)
    run(config)
    assert "gold" not in labels(config)[0]
