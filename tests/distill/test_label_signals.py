"""What a label says of itself beside the answer: hints, log-probabilities, a judge's mark, a confidence."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse, Response

from decant.errors import ConfigError, StageError
from decant.wire import TokenLogprob
from decant_distill.calibration import Calibrator, Judged, Signals, calibration_error, why_not
from decant_distill.label import run
from decant_distill.label_hint import reaches
from decant_distill.label_requests import answer_logprob
from tests.distill.loopback_teacher import Teacher, answer, config_for, labels, stored, summary

PRICES = {"usd_per_million_prompt_tokens": 100.0, "usd_per_million_completion_tokens": 100.0}


def rationalising(teacher: Teacher, *, rationale: str = "2 and 2 make 4.", last: str = "4") -> None:
    def reply(prompt: str, body: dict[str, Any]) -> Response:
        is_hinted = "the right answer is" in prompt
        return answer(f"{rationale}\nAnswer: {last}" if is_hinted else "A guess.\nAnswer: 5")

    teacher.reply = reply


def test_where_all_samples_miss_gold_a_hint_brings_a_rationale(teacher: Teacher, tmp_path: Path) -> None:
    rationalising(teacher)
    rows = [{"id": "a", "prompt": "2+2", "gold": "4"}, {"id": "b", "prompt": "2+3", "gold": "5"}]
    config = config_for(teacher, tmp_path, rows, samples=2, temperature=1.0, hint=True)
    run(config)
    written = labels(config)
    assert [(label["id"], label["sample"], label.get("hinted")) for label in written] == [
        ("a", 0, None),
        ("a", 1, None),
        ("a", 2, True),
        ("b", 0, None),
        ("b", 1, None),
    ]
    assert (written[2]["answer"], written[2]["reasoning"]) == ("4", "2 and 2 make 4.")
    assert written[2]["prompt"] == [{"role": "user", "content": "2+2"}]
    assert "right answer" not in config.output.read_text()
    assert summary(config)["hinted"] == {"kept": 1}
    run(config)
    assert (len(teacher.bodies), stored(config)["done"]) == (5, 5)


@pytest.mark.parametrize(
    ("rationale", "last", "error_class"),
    [
        ("2 and 2 make 4.", "6", "hint_missed"),
        ("As the hint says, it is 4.", "4", "hint_told"),
        ("The given answer is 4.", "4", "hint_told"),
        ("I was told it is 4.", "4", "hint_told"),
        ("", "4", "hint_told"),
    ],
)
def test_a_rationale_that_misses_gold_or_tells_of_it_is_no_label(
    teacher: Teacher, tmp_path: Path, rationale: str, last: str, error_class: str
) -> None:
    rationalising(teacher, rationale=rationale, last=last)
    config = config_for(
        teacher, tmp_path, [{"prompt": "2+2", "gold": "4"}, {"prompt": "x", "gold": "5"}], hint=True
    )
    run(config)
    assert (labels(config)[1]["status"], labels(config)[1]["error_class"]) == ("failed", error_class)
    assert summary(config)["hinted"] == {error_class: 1}


def test_rows_without_gold_or_with_a_failed_request_get_no_hint(teacher: Teacher, tmp_path: Path) -> None:
    rationalising(teacher)
    config = config_for(teacher, tmp_path, [{"prompt": "2+2"}], hint=True)
    run(config)
    assert len(teacher.bodies) == 1
    with pytest.raises(ConfigError, match="drop_gold"):
        config_for(teacher, tmp_path, [], hint=True, drop_gold=True)


def test_gold_is_reached_in_other_words_but_not_in_another_name() -> None:
    assert reaches("$1,200.", "1200")
    assert reaches("Yes.", "yes")
    assert not reaches("B2", "C2")
    assert not reaches("3", "4")


def test_the_log_probability_is_that_of_the_answer_alone(teacher: Teacher, tmp_path: Path) -> None:
    def reply(prompt: str, body: dict[str, Any]) -> Response:
        assert body["logprobs"] is True
        tokens = [("so 4", -9.0), ("\nAnswer:", -7.0), (" 4", -0.5), ("2", -0.1)]
        logprobs = {"content": [{"token": token, "logprob": value} for token, value in tokens]}
        message = {"role": "assistant", "content": "so 4\nAnswer: 42"}
        choice = {"index": 0, "message": message, "finish_reason": "stop", "logprobs": logprobs}
        return JSONResponse({"id": "x", "model": "big", "choices": [choice]})

    teacher.reply = reply
    config = config_for(teacher, tmp_path, [{"prompt": "6*7"}], logprobs=True)
    run(config)
    assert labels(config)[0]["logprob"] == pytest.approx(-0.3)
    assert summary(config)["without_logprob"] == 0


def test_an_answer_that_the_tokens_do_not_spell_has_no_log_probability() -> None:
    assert answer_logprob([TokenLogprob(token="x", logprob=-1.0)], "y") is None
    assert answer_logprob(None, "y") is None


def judging(teacher: Teacher, **mark: str) -> None:
    def reply(prompt: str, body: dict[str, Any]) -> Response:
        if body["model"] == "judge":
            return answer(f"Looks so.\nAnswer: {mark['good'] if 'hood' in prompt else mark['bad']}")
        return answer("because\nAnswer: " + ("hood" if "a" in prompt else "wink"))

    teacher.reply = reply


def judge_config(teacher: Teacher, **prices: float) -> dict[str, Any]:
    return {"endpoint": {"base_url": teacher.base_url, "model": "judge", **prices}}


def test_a_judge_marks_labels_once_and_never_sees_gold(teacher: Teacher, tmp_path: Path) -> None:
    judging(teacher, good="5", bad="**2** / 5")
    rows = [{"prompt": "a", "gold": "secret"}, {"prompt": "b", "gold": "secret"}, {"prompt": "a"}]
    config = config_for(teacher, tmp_path, rows, judge=judge_config(teacher))
    run(config)
    assert [(label["judge"], label["checks"]["judge"]) for label in labels(config)] == [
        (1.0, True),
        (0.25, False),
        (1.0, True),
    ]
    asked = [body for body in teacher.bodies if body["model"] == "judge"]
    assert len(asked) == 2
    assert "secret" not in json.dumps(asked)
    run(config)
    assert len(teacher.bodies) == 4
    assert summary(config)["judge"]["reused"] == 2


def test_a_mark_that_cannot_be_read_is_no_mark(teacher: Teacher, tmp_path: Path) -> None:
    judging(teacher, good="7", bad="perhaps")
    config = config_for(teacher, tmp_path, [{"prompt": "a"}, {"prompt": "b"}], judge=judge_config(teacher))
    run(config)
    assert [(label.get("judge"), label["checks"]["judge"]) for label in labels(config)] == [(None, None)] * 2


def test_the_judge_is_paid_from_the_same_budget(teacher: Teacher, tmp_path: Path) -> None:
    judging(teacher, good="5", bad="1")
    rows = [{"prompt": f"a{number}"} for number in range(8)]
    changes = {"endpoint": PRICES, "judge": judge_config(teacher, **PRICES), "concurrency": 1}
    # Each answer costs $0.0015; a judgement may cost about $0.1 at worst before it is sent.
    with pytest.raises(StageError, match="budget"):
        run(config_for(teacher, tmp_path, rows, budget_usd=0.05, **changes))
    config = config_for(teacher, tmp_path, rows, budget_usd=1.0, **changes)
    run(config)
    spent = summary(config)
    assert spent["cost_usd"] == pytest.approx(0.012)
    assert spent["judge"]["cost_usd"] == pytest.approx(0.0015 * spent["judge"]["requests"])


def evidence(count: int, seed: int = 0) -> list[Judged]:
    """Vote shares that promise far too much: an answer of share s is right with probability s / 2."""
    generator = random.Random(seed)
    found: list[Judged] = []
    for number in range(count):
        votes = generator.randrange(1, 9)
        found.append(Judged(Signals(votes, 8), generator.random() < votes / 16, number % 5))
    return found


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_calibration_takes_most_of_the_error_away(method: Any) -> None:
    calibrator = Calibrator(evidence(2000), method)
    report = calibrator.report
    assert report.ece_before == pytest.approx(0.28, abs=0.05)
    assert report.ece_after < 0.06
    assert report.brier_after < report.brier_before
    low, high = (calibrator.confidence(Signals(votes, 8), None) for votes in (1, 8))
    assert (low < 0.2, 0.4 < high < 0.6) == (True, True)


def test_a_second_signal_that_knows_more_is_used() -> None:
    generator = random.Random(1)
    rights = [generator.random() < 0.5 for _ in range(500)]
    judged = [
        Judged(Signals(1, 1, judge=0.9 if right else 0.1), right, number % 5)
        for number, right in enumerate(rights)
    ]
    calibrator = Calibrator(judged, "platt")
    assert calibrator.confidence(Signals(1, 1, judge=0.9), None) > 0.9
    assert calibrator.report.brier_after < 0.02


def test_a_row_is_never_judged_by_a_fit_that_saw_it() -> None:
    """One fold is right throughout, the others wrong: fits that saw the fold would know."""
    judged = [Judged(Signals(1, 1), fold == 0, fold) for fold in range(5) for _ in range(40)]
    judged += [Judged(Signals(1, 1), True, fold) for fold in range(1, 5) for _ in range(2)]
    calibrator = Calibrator(judged, "platt")
    assert calibrator.confidence(Signals(1, 1), 0) < 0.1
    assert calibrator.confidence(Signals(1, 1), 1) > 0.2


def test_too_little_gold_is_said_and_not_guessed(teacher: Teacher, tmp_path: Path) -> None:
    config = config_for(teacher, tmp_path, [{"prompt": "a", "gold": "A"}], calibrate="platt")
    run(config)
    assert "only 1 answers have gold" in summary(config)["calibration"]["skipped"]
    assert "confidence" not in labels(config)[0]
    assert why_not([Judged(Signals(1, 1), True, number % 5) for number in range(60)]) is not None


def test_labels_get_their_calibrated_confidence(teacher: Teacher, tmp_path: Path) -> None:
    teacher.reply = lambda prompt, body: answer("Answer: " + ("x" if int(prompt[1:]) % 3 else "y"))
    rows = [{"prompt": f"p{number}", **({"gold": "x"} if number % 2 else {})} for number in range(120)]
    config = config_for(teacher, tmp_path, rows, calibrate="isotonic", concurrency=16)
    run(config)
    found = [label["confidence"] for label in labels(config)]
    assert all(0.5 < confidence < 0.8 for confidence in found)
    report = summary(config)["calibration"]
    assert (report["labels"], report["right"]) == (60, 40)
    assert report["ece_before"] == pytest.approx(1 / 3)
    assert report["ece_after"] < 0.2


def test_the_calibration_error_is_the_gap_per_bin() -> None:
    import numpy as np

    confidence, right = np.array([0.95, 0.95, 0.05, 0.05]), np.array([1.0, 0.0, 0.0, 0.0])
    assert calibration_error(confidence, right) == pytest.approx(0.25)
