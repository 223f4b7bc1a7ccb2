"""What a job may ask for beside plain answers: other forms, more samples, checks, templates, redaction."""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response

from decant.errors import ConfigError, DataError, StageError
from decant_distill.label import run
from decant_distill.label_votes import further_samples, majority_probability
from tests.distill.loopback_teacher import (
    Teacher,
    answer,
    config_for,
    labels,
    prompts,
    stored,
    summary,
)


@pytest.mark.parametrize(
    ("text", "reasoning", "said", "error_class"),
    [
        ("<reasoning>2 and 2</reasoning>\n<answer>4</answer>", "2 and 2", "4", None),
        (
            "<think>an <answer>9</answer></think>so <answer>\n4\n</answer>",
            "an <answer>9</answer>\nso",
            "4",
            None,
        ),
        ("so <answer>4", "so <answer>4", None, "no_answer"),
    ],
)
def test_an_answer_may_stand_in_a_tag(
    teacher: Teacher, tmp_path: Path, text: str, reasoning: str, said: str | None, error_class: str | None
) -> None:
    teacher.reply = lambda prompt, body: answer(text if prompt == "2+2" else "<answer>x</answer>")
    config = config_for(teacher, tmp_path, prompts("2+2", "x"), answers={"form": "tag"})
    run(config)
    label = labels(config)[0]
    assert (label["reasoning"], label["answer"], label["error_class"]) == (reasoning, said, error_class)


def test_a_schema_constrains_the_answer_and_leaves_the_reasoning_free(
    teacher: Teacher, tmp_path: Path
) -> None:
    replies = {
        "good": '```json\n{"reasoning": "2 and 2", "answer": 4}\n```',
        "wrong": '{"reasoning": "", "answer": "four"}',
        "half": '{"reasoning": "2 and',
    }
    teacher.reply = lambda prompt, body: answer(replies[prompt])
    answers = {"form": "json", "answer_schema": {"type": "integer"}}
    config = config_for(teacher, tmp_path, prompts(*replies), answers=answers)
    run(config)
    assert [(label["answer"], label["error_class"]) for label in labels(config)] == [
        ("4", None),
        (None, "schema"),
        (None, "bad_json"),
    ]
    sent = teacher.bodies[0]["response_format"]["json_schema"]["schema"]
    assert list(sent["properties"]) == ["reasoning", "answer"]
    assert sent["properties"]["answer"] == {"type": "integer"}


def test_three_equal_votes_are_enough_and_a_split_draws_more(teacher: Teacher, tmp_path: Path) -> None:
    drawn: Counter[str] = Counter()

    def reply(prompt: str, body: dict[str, Any]) -> Response:
        drawn[prompt] += 1
        return answer(f"Answer: {drawn[prompt] == 1 if prompt == 'split' else 'yes'}")

    teacher.reply = reply
    config = config_for(
        teacher, tmp_path, prompts("sure", "split"), samples=3, max_samples=16, temperature=1.0, concurrency=1
    )
    run(config)
    assert drawn == {"sure": 3, "split": 6}
    written = labels(config)
    assert [label["id"] for label in written] == ["sure"] * 3 + ["split"] * 6
    assert (written[0]["votes"], written[0]["drawn"], written[0]["vote_share"]) == (3, 3, 1.0)
    assert Counter(label["votes"] for label in written[3:]) == {1: 1, 5: 5}
    run(config)
    assert (sum(drawn.values()), summary(config)["reused"], summary(config)["requests"]) == (9, 9, 9)


def test_a_prompt_that_never_agrees_stops_at_the_most(teacher: Teacher, tmp_path: Path) -> None:
    teacher.reply = lambda prompt, body: answer(f"Answer: {len(teacher.bodies)}")
    changes = {"samples": 2, "max_samples": 5, "temperature": 1.0, "concurrency": 1}
    config = config_for(teacher, tmp_path, prompts("a"), **changes)
    run(config)
    assert [label["vote_share"] for label in labels(config)] == [0.2] * 5


def test_a_prompt_without_any_answer_is_not_asked_again(teacher: Teacher, tmp_path: Path) -> None:
    teacher.reply = lambda prompt, body: answer("Answer: 4", finish_reason="length")
    config = config_for(teacher, tmp_path, prompts("a"), samples=3, max_samples=16, temperature=1.0)
    with pytest.raises(DataError, match="length 3"):
        run(config)
    assert len(teacher.bodies) == 3


def test_the_posterior_of_the_majority_is_the_binomial_sum() -> None:
    assert majority_probability(3, 0) == 15 / 16
    assert majority_probability(2, 2) == 0.5
    assert further_samples(["a", "A.", "a"], most=16, confidence=0.9) == 0
    assert further_samples(["a", "b", None], most=16, confidence=0.9) == 4
    assert further_samples(["a", "b", "c"], most=4, confidence=0.9) == 1


def test_verifiers_say_their_word_and_gold_stays_out_of_it(teacher: Teacher, tmp_path: Path) -> None:
    teacher.reply = lambda prompt, body: answer("2 + 2 = 5\nAnswer: 5")
    verify = [{"kind": "numeric"}, {"kind": "arithmetic"}, {"kind": "regex", "options": {"pattern": "\\d"}}]
    rows = [{"prompt": "2+2", "gold": "4"}]
    config = config_for(teacher, tmp_path, rows, verify=verify)
    run(config)
    (label,) = labels(config)
    assert label["checks"] == {"numeric": False, "arithmetic": False, "regex": True}
    assert label["check_notes"] == {"numeric": "gold is 4", "arithmetic": "2 + 2 = 5: it is 4"}
    assert summary(config)["checks"]["numeric"] == {"failed": 1}
    run(config.with_changes(drop_gold=True))
    assert "4" not in json.dumps({**labels(config)[0], "response": "", "latency_s": 0, "key": ""})


def test_a_template_is_named_in_the_label_by_its_hash(teacher: Teacher, tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text("{{ prompt | upper }}?")
    config = config_for(teacher, tmp_path, prompts("abc"), task={"template_file": file})
    run(config)
    assert teacher.seen == ["ABC?"]
    assert labels(config)[0]["template"].startswith("own@")


def test_a_broken_template_or_verifier_stops_before_spending(teacher: Teacher, tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("{% if %}")
    broken = config_for(teacher, tmp_path, prompts("a"), task={"template_file": tmp_path / "own.jinja"})
    with pytest.raises(ConfigError, match="not a template"):
        run(broken)
    with pytest.raises(ConfigError, match="did you mean numeric"):
        run(config_for(teacher, tmp_path, prompts("a"), verify=[{"kind": "numric"}]))
    assert teacher.bodies == []


def test_nothing_private_leaves_the_machine(teacher: Teacher, tmp_path: Path) -> None:
    rows = [{"id": "ann@x.org", "prompt": "Mail ann@x.org", "gold": "ann@x.org"}]
    config = config_for(teacher, tmp_path, rows, redact=["email"])
    run(config)
    assert teacher.seen == ["Mail [EMAIL_1]"]
    (label,) = labels(config)
    assert (label["id"], label["gold"], label["redacted"]) == ("ann@x.org", "[EMAIL_1]", {"email": 1})
    assert summary(config)["redacted"] == {"email": 1}


def test_an_estimate_asks_a_sample_and_keeps_its_answers(
    teacher: Teacher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dear = {"usd_per_million_completion_tokens": 1e5}
    rows = prompts(*(f"p{i}" for i in range(20)))
    config = config_for(teacher, tmp_path, rows, endpoint=dear, estimate=4, budget_usd=100)
    run(config)
    assert (
        "16 requests are still open: $8 ± 0 (standard error), 160 tokens in, 80 out"
        in capsys.readouterr().out
    )
    assert (stored(config)["done"], stored(config)["pending"], config.output.exists()) == (4, 16, False)
    run(config.with_changes(estimate=None))
    assert (len(teacher.bodies), summary(config)["reused"]) == (20, 4)


def test_an_estimate_that_the_budget_does_not_pay_stops(teacher: Teacher, tmp_path: Path) -> None:
    dear = {"usd_per_million_completion_tokens": 1e6}
    task = {"max_tokens": 5}
    config = config_for(
        teacher, tmp_path, prompts(*"abc"), endpoint=dear, estimate=3, budget_usd=6, task=task
    )
    with pytest.raises(StageError, match="raise budget_usd"):
        run(config)


def test_all_that_the_store_holds_can_be_exported(teacher: Teacher, tmp_path: Path) -> None:
    config = config_for(teacher, tmp_path, prompts("a", "b"), export=tmp_path / "all.jsonl")
    run(config)
    run(config_for(teacher, tmp_path, prompts("c"), export=tmp_path / "all.jsonl"))
    rows = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert [(row["answer"], row["status"], row["request"]["messages"][0]["content"]) for row in rows] == [
        ("A", "done", "a"),
        ("B", "done", "b"),
        ("C", "done", "c"),
    ]


def test_an_export_to_parquet_without_pyarrow_says_what_to_install(
    teacher: Teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    config = config_for(teacher, tmp_path, prompts("a"), export=tmp_path / "all.parquet")
    with pytest.raises(DataError, match="pip install pyarrow"):
        run(config)
