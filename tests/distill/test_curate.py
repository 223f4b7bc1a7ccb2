"""`decant curate`: what each rule drops, what is left, and what the report says of both."""

import json
from pathlib import Path
from typing import Any

import pytest

from decant.config import load_config
from decant.errors import DataError
from decant.reviews import Review, add_review
from decant.store import RequestStore
from decant_distill.curate import CurateConfig, run
from decant_distill.curate_survey import question_digest


def label(prompt: str, sample: int, answer: str | None, **changes: Any) -> dict[str, Any]:
    return {
        "id": prompt,
        "line": 1,
        "key": f"{prompt}-{sample}",
        "sample": sample,
        "prompt": [{"role": "user", "content": prompt}],
        "status": "done" if answer else "failed",
        "reasoning": f"thought {sample}",
        "answer": answer,
        "response": f"thought {sample}\nAnswer: {answer}",
        "finish_reason": "stop",
        "teacher": "big",
        **changes,
    }


def votes(prompt: str, *answers: str, **changes: Any) -> list[dict[str, Any]]:
    return [label(prompt, sample, answer, **changes) for sample, answer in enumerate(answers)]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def curate(folder: Path, rows: list[Any], **changes: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    values = {"labels": write(folder / "labels.jsonl", rows), "output": folder / "train.jsonl", **changes}
    run(load_config(CurateConfig, values=values))
    kept = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    return kept, json.loads((folder / "curation.json").read_text())


def dropped(report: dict[str, Any]) -> dict[str, int]:
    return {rule["name"]: rule["dropped"] for rule in report["rules"] if rule["dropped"]}


def test_a_training_row_holds_prompt_completion_and_where_it_came_from(tmp_path: Path) -> None:
    (row,), _ = curate(tmp_path, votes("2+2", "4", group="sums", length=1))
    assert row["prompt"] == [{"role": "user", "content": "2+2"}]
    assert row["completion"] == [{"role": "assistant", "content": "thought 0\nAnswer: 4"}]
    assert (row["reasoning"], row["answer"], row["label_key"]) == ("thought 0", "4", "2+2-0")
    assert (row["group"], row["length"], row["votes"], row["vote_share"]) == ("sums", 1, 1, 1.0)


def test_failed_cut_and_unmarked_answers_are_dropped_each_under_its_name(tmp_path: Path) -> None:
    rows = [
        label("a", 0, "1"),
        label("b", 0, None, error_class="server_error", error="oops"),
        label("c", 0, None, error_class="length", error="cut"),
        label("d", 0, None, error_class="no_answer", error="no marker"),
        {"id": "e", "sample": 0, "status": "failed", "error_class": "bad_row", "error": "line 5: not JSON"},
    ]
    kept, report = curate(tmp_path, rows)
    assert [row["id"] for row in kept] == ["a"]
    assert dropped(report) == {"failed": 2, "cut": 1, "no_answer": 1}
    assert (report["rows_in"], report["rows_out"]) == (5, 1)


def test_the_majority_of_the_samples_stays(tmp_path: Path) -> None:
    rows = (
        votes("clear", "7", "7", "7.", "3")
        + votes("tie", "1", "1", "2", "2")
        + votes("lone", "1", "2", "3", "4")
    )
    kept, report = curate(tmp_path, rows, keep="majority")
    assert [(row["id"], row["sample"], row["votes"], row["vote_share"]) for row in kept] == [
        ("clear", sample, 3, 0.75) for sample in range(3)
    ]
    assert dropped(report) == {"vote": 9}


def test_failed_samples_count_against_the_vote_share(tmp_path: Path) -> None:
    cut = [label("a", sample, None, error_class="length") for sample in (2, 3)]
    kept, _ = curate(tmp_path, votes("a", "7", "7") + cut, keep="majority")
    assert [row["vote_share"] for row in kept] == [0.5, 0.5]


def test_one_vote_is_no_majority(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no label is left \(dropped by rule: vote 2\)"):
        curate(tmp_path, votes("a", "7") + votes("b", "7"), keep="majority")
    report = json.loads((tmp_path / "curation.json").read_text())
    assert report["rules"][4]["examples"][0]["reason"] == "1 of 1 votes, fewer than 2"
    assert not (tmp_path / "train.jsonl").exists()


def test_a_label_under_two_row_ids_votes_once(tmp_path: Path) -> None:
    twice = [{**row, "id": "again"} for row in votes("a", "7", "3")]
    with pytest.raises(DataError, match="vote 4"):
        curate(tmp_path, votes("a", "7", "3") + twice, keep="majority")


def test_only_answers_that_equal_gold_are_verified(tmp_path: Path) -> None:
    rows = votes("a", "Seven", "eight", gold="seven.") + votes("b", "7")
    kept, report = curate(tmp_path, rows, keep="verified")
    assert [row["answer"] for row in kept] == ["Seven"]
    assert "gold" not in kept[0]
    reasons = [example["reason"] for example in report["rules"][4]["examples"]]
    assert reasons == ["the answer is not gold", "the row has no gold"]
    assert report["right"] == {"answers_with_gold": 2, "right": 1, "kept_with_gold": 1, "kept_right": 1}


def test_exact_duplicates_go_and_other_rationales_stay(tmp_path: Path) -> None:
    rows = [label("a", 0, "7"), label("a", 1, "7", reasoning="thought 0"), label("a", 2, "7")]
    kept, report = curate(tmp_path, rows)
    assert [row["sample"] for row in kept] == [0, 2]
    assert report["rules"][-1]["examples"][0]["reason"] == "the same prompt and completion as line 1"


def test_rationales_per_prompt_are_capped_in_file_order(tmp_path: Path) -> None:
    kept, report = curate(tmp_path, votes("a", "7", "7", "7") + votes("b", "1"), max_per_prompt=2)
    assert [(row["id"], row["sample"]) for row in kept] == [("a", 0), ("a", 1), ("b", 0)]
    assert dropped(report) == {"cap": 1}


def test_prompts_of_the_evaluation_set_are_dropped_however_they_are_spaced(tmp_path: Path) -> None:
    held_out = write(tmp_path / "test.jsonl", [{"question": "  is\tWATER wet? "}, "{half"])
    rows = votes("Is water wet?", "yes") + votes("Is fire wet?", "no")
    task = {"prompt": "{question}"}
    kept, report = curate(tmp_path, rows, decontaminate=held_out, task=task)
    assert [row["id"] for row in kept] == ["Is fire wet?"]
    assert (report["decontamination"]["prompts"], report["decontamination"]["bad_rows"]) == (1, 1)


def test_an_evaluation_set_without_prompts_is_an_error_and_no_silent_pass(tmp_path: Path) -> None:
    held_out = write(tmp_path / "test.jsonl", [{"text": "x"}])
    with pytest.raises(DataError, match=r"check task\.prompt"):
        curate(tmp_path, votes("a", "1"), decontaminate=held_out)


def test_signs_tell_prompts_apart() -> None:
    assert question_digest("7 + 5") != question_digest("7 - 5")


def test_lines_that_hold_no_label_are_counted_and_the_rest_goes_on(tmp_path: Path) -> None:
    kept, report = curate(tmp_path, ["{half", {"id": "x"}, *votes("a", "7")])
    assert len(kept) == 1
    assert dropped(report) == {"unreadable": 2}
    assert [example["line"] for example in report["rules"][0]["examples"]] == [1, 2]


def test_the_report_shows_three_examples_of_what_a_rule_dropped(tmp_path: Path) -> None:
    wrong = [label(f"p{i}", 0, "no", gold="yes") for i in range(5)]
    _, report = curate(tmp_path, [*wrong, label("p", 0, "yes", gold="yes")], keep="verified")
    (verified,) = [rule for rule in report["rules"] if rule["name"] == "verified"]
    assert [example["id"] for example in verified["examples"]] == ["p0", "p1", "p2"]
    assert verified["examples"][0]["response"] == "thought 0\nAnswer: no"


def test_the_same_labels_give_the_same_bytes(tmp_path: Path) -> None:
    rows = votes("a", "7", "7", "3") + votes("b", "1", "1", "1")
    curate(tmp_path, rows, keep="majority")
    first = (tmp_path / "train.jsonl").read_bytes()
    curate(tmp_path, rows, keep="majority")
    assert (tmp_path / "train.jsonl").read_bytes() == first


def test_the_report_goes_where_it_is_asked_to(tmp_path: Path) -> None:
    values = {"labels": write(tmp_path / "labels.jsonl", votes("a", "7")), "output": tmp_path / "out.jsonl"}
    run(load_config(CurateConfig, values={**values, "report": tmp_path / "why.json"}))
    assert json.loads((tmp_path / "why.json").read_text())["rows_out"] == 1


def test_what_a_reviewer_rejected_never_enters_and_an_edit_replaces_the_answer(tmp_path: Path) -> None:
    rows = [*votes("a", "7", "7", "3"), label("b", 0, None, error_class="length", error="cut")]
    decisions = [
        Review(of="a-0", version=1, decision="reject"),
        Review(of="a-2", version=1, decision="reject"),
        Review(of="a-2", version=2, decision="edit", answer="8", reasoning="better"),
        Review(of="b-0", version=1, decision="edit", answer="9"),
    ]
    with RequestStore.open(tmp_path / "labels.store.sqlite") as requests:
        for decision in decisions:
            add_review(requests, decision, row_id="r", sample=0, asked=[])
    kept, report = curate(tmp_path, rows, keep="majority", min_votes=1)
    found = [(row["id"], row["sample"], row["answer"], row["reasoning"], row.get("reviewed")) for row in kept]
    assert found == [
        ("a", 1, "7", "thought 1", None),
        ("a", 2, "8", "better", "edit"),
        ("b", 0, "9", None, "edit"),
    ]
    assert kept[1]["label_key"] == decisions[2].key
    assert dropped(report) == {"review": 1}
    assert report["reviews"] == {"reject": 1, "edit": 2}


def test_what_a_person_accepted_is_not_judged_again(tmp_path: Path) -> None:
    with RequestStore.open(tmp_path / "own.sqlite") as requests:
        accepted = Review(of="a-1", version=1, decision="accept")
        add_review(requests, accepted, row_id="a", sample=1, asked=[])
    rows = votes("a", "7", "3", "3", gold="7")
    kept, _ = curate(tmp_path, rows, keep="verified", reviews=tmp_path / "own.sqlite")
    assert [row["sample"] for row in kept] == [0, 1]
    with pytest.raises(DataError, match="no such store"):
        curate(tmp_path, rows, reviews=tmp_path / "none.sqlite")


def test_every_dropped_line_is_listed_and_shown_on_a_page_that_loads_nothing(tmp_path: Path) -> None:
    rows = votes("<script>1</script>", *["7"] * 60, *["3"] * 50)
    _, report = curate(tmp_path, rows, keep="majority")
    lines = [json.loads(line) for line in (tmp_path / "curation.dropped.jsonl").read_text().splitlines()]
    assert [line["line"] for line in lines] == list(range(61, 111))
    assert lines[0]["rule"] == "vote"
    page = (tmp_path / "curation.html").read_text()
    assert page.count("<details>") == 40
    assert "<script" not in page
    assert "http" not in page
    assert len(report["rules"][4]["examples"]) == 3
