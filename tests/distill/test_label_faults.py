"""`decant label` when the endpoint refuses, storms or dies, and when the job itself is killed."""

import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response

from decant.errors import EndpointError
from decant_distill.label import run
from tests.distill.loopback_teacher import (
    Teacher,
    config_for,
    labels,
    prompts,
    reasoned,
    refusal,
    serving,
    start,
    stored,
    summary,
    wait_until,
)


def test_a_storm_of_429_and_500_loses_nothing(teacher: Teacher, tmp_path: Path) -> None:
    tries: Counter[str] = Counter()

    def stormy(prompt: str, body: dict[str, Any]) -> Response:
        tries[prompt] += 1
        if tries[prompt] == 1:
            return refusal(429, "slow down", **{"retry-after": "0"})
        return refusal(500, "oops", **{"retry-after": "0"}) if tries[prompt] == 2 else reasoned(prompt, body)

    teacher.reply = stormy
    config = config_for(teacher, tmp_path, prompts(*(f"p{i}" for i in range(30))), concurrency=16)
    run(config)
    assert [label["status"] for label in labels(config)] == ["done"] * 30
    assert set(tries.values()) == {3}


def test_a_request_that_the_endpoint_refuses_is_a_failed_row(teacher: Teacher, tmp_path: Path) -> None:
    teacher.reply = lambda prompt, body: (
        refusal(400, "too long", code="context_length_exceeded")
        if prompt == "long"
        else reasoned(prompt, body)
    )
    config = config_for(teacher, tmp_path, prompts("long", "short"))
    run(config)
    long, short = labels(config)
    assert (long["status"], long["error_class"], short["status"]) == ("failed", "bad_request", "done")
    assert "too long" in long["error"]


def test_a_row_that_failed_without_an_answer_is_asked_again_by_a_rerun(
    teacher: Teacher, tmp_path: Path
) -> None:
    teacher.reply = lambda prompt, body: (
        refusal(500, "oops", **{"retry-after": "0"}) if prompt == "b" else reasoned(prompt, body)
    )
    config = config_for(teacher, tmp_path, prompts("a", "b"), max_attempts=2)
    run(config)
    assert [label["status"] for label in labels(config)] == ["done", "failed"]
    teacher.reply = reasoned
    run(config)
    assert [label["status"] for label in labels(config)] == ["done", "done"]
    assert teacher.seen.count("a") == 1


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [(401, "invalid_api_key", "API key"), (403, None, "API key"), (404, "model_not_found", "model id"),
     (429, "insufficient_quota", "quota")],
)  # fmt: skip
def test_a_wrong_key_or_model_or_empty_account_stops_before_spending(
    teacher: Teacher, tmp_path: Path, status: int, code: str | None, words: str
) -> None:
    teacher.reply = lambda prompt, body: refusal(
        status, f"refused: {code}", code=code, **{"retry-after": "0"}
    )
    config = config_for(teacher, tmp_path, prompts(*"abcdefghij"), concurrency=2, max_attempts=1)
    with pytest.raises(EndpointError, match=words):
        run(config)
    assert len(teacher.bodies) <= 2
    assert not config.output.exists()


def test_an_endpoint_that_refuses_every_request_stops_the_job(teacher: Teacher, tmp_path: Path) -> None:
    teacher.reply = lambda prompt, body: refusal(400, "temperature is not supported")
    config = config_for(teacher, tmp_path, prompts(*(f"p{i}" for i in range(100))), concurrency=2)
    with pytest.raises(EndpointError, match=r"10 requests in a row failed.*temperature is not supported"):
        run(config)
    assert len(teacher.bodies) < 15


def test_an_endpoint_that_goes_down_leaves_a_job_that_resumes(tmp_path: Path) -> None:
    teacher = Teacher()

    def dying(prompt: str, body: dict[str, Any]) -> Response:
        if len(teacher.bodies) == 10:
            teacher.stop()
        return reasoned(prompt, body)

    teacher.reply = dying
    teacher.delay_s = 0.05
    with serving(teacher) as up:
        config = config_for(
            up, tmp_path, prompts(*(f"p{i}" for i in range(40))), concurrency=2, max_attempts=2
        )
        with pytest.raises(EndpointError, match="run the same command again to go on"):
            run(config)
    answered = stored(config)["done"]
    with serving(teacher, port=teacher.port):
        run(config)
    assert (summary(config)["done"], summary(config)["reused"]) == (40, answered)
    assert 10 <= answered < 40
    assert sorted(teacher.seen) == sorted(f"p{i}" for i in range(40))


def test_an_endpoint_that_is_down_from_the_start_is_one_line(teacher: Teacher, tmp_path: Path) -> None:
    config = config_for(teacher, tmp_path, prompts("a"), endpoint={"base_url": "http://127.0.0.1:9/v1"})
    with pytest.raises(EndpointError, match=r"127\.0\.0\.1:9.*run the same command again"):
        run(config)


@pytest.mark.parametrize("kill_after", [1, 17, 50])
def test_a_killed_job_loses_only_what_was_in_flight(
    teacher: Teacher, tmp_path: Path, kill_after: int
) -> None:
    teacher.delay_s = 0.02
    config = config_for(teacher, tmp_path, prompts(*(f"p{i}" for i in range(60))), concurrency=4)
    process = start(config)
    wait_until(lambda: len(teacher.bodies) >= kill_after)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    wait_until(lambda: teacher.in_flight == 0)
    asked, answered = len(teacher.bodies), stored(config)["done"]
    assert answered >= asked - 4
    assert not config.output.exists()
    run(config)
    assert [label["id"] for label in labels(config)] == [f"p{i}" for i in range(60)]
    assert (summary(config)["done"], summary(config)["reused"]) == (60, answered)
    assert len(teacher.bodies) == asked + 60 - answered


def test_two_jobs_on_one_store_share_the_work(teacher: Teacher, tmp_path: Path) -> None:
    teacher.delay_s = 0.02
    one = config_for(teacher, tmp_path, prompts(*(f"p{i}" for i in range(40))), concurrency=2)
    other = one.with_changes(output=tmp_path / "other.jsonl", store=one.store_path)
    processes = [start(one), start(other)]
    assert [process.wait(timeout=50) for process in processes] == [0, 0]
    assert sorted(teacher.seen) == sorted(f"p{i}" for i in range(40))
    assert [label["answer"] for label in labels(one)] == [label["answer"] for label in labels(other)]
