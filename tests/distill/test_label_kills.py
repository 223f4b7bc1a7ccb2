"""A labeling job killed again and again, and one whose endpoint does all wrong: what is lost, counted."""

import random
import resource
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response

from decant.errors import DecantError
from decant_distill.label import LabelConfig, run
from tests.distill.loopback_teacher import (
    Teacher,
    answer,
    config_for,
    labels,
    prompts,
    reasoned,
    refusal,
    start,
    stored,
    summary,
    wait_until,
)

CONCURRENCY = 4


def kill_at_random_moments(config: LabelConfig, teacher: Teacher, *, kills: int, seed: int) -> list[int]:
    """Starts and kills the job; returns how many answers the store held after each kill."""
    generator = random.Random(seed)
    kept: list[int] = []
    for _ in range(kills):
        asked = len(teacher.bodies)
        process = start(config)
        wait_until(lambda before=asked: len(teacher.bodies) > before)
        time.sleep(generator.uniform(0.0, 0.12))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        wait_until(lambda: teacher.in_flight == 0)
        kept.append(stored(config)["done"])
    return kept


def test_a_job_killed_at_random_moments_pays_again_only_for_what_was_in_flight(
    teacher: Teacher, tmp_path: Path
) -> None:
    teacher.delay_s = 0.02
    rows = prompts(*(f"p{i}" for i in range(120)))
    config = config_for(teacher, tmp_path, rows, concurrency=CONCURRENCY)
    kept = kill_at_random_moments(config, teacher, kills=4, seed=0)
    run(config)
    written = labels(config)
    assert kept == sorted(kept)
    assert summary(config)["reused"] == kept[-1]
    assert len(teacher.bodies) <= 120 + 4 * CONCURRENCY
    assert [label["id"] for label in written] == [f"p{i}" for i in range(120)]
    assert all(label["answer"] == label["id"].upper() for label in written)


def test_a_killed_job_with_adaptive_samples_ends_like_one_that_was_not(
    teacher: Teacher, tmp_path: Path
) -> None:
    def split(prompt: str, body: dict[str, Any]) -> Response:
        # The same request always gets the same answer, whoever asks.
        return answer(f"Answer: {random.Random(body['seed']).random() < 0.7}")

    teacher.reply, teacher.delay_s = split, 0.01
    changes: dict[str, Any] = {
        "samples": 3, "max_samples": 9, "temperature": 1.0, "concurrency": CONCURRENCY,
    }  # fmt: skip
    rows = prompts(*(f"p{i}" for i in range(25)))
    (tmp_path / "whole").mkdir()
    whole = config_for(teacher, tmp_path / "whole", rows, **changes)
    run(whole)
    needed = len(teacher.bodies)
    config = config_for(teacher, tmp_path, rows, **changes)
    kill_at_random_moments(config, teacher, kills=1, seed=2)
    run(config)
    assert len(teacher.bodies) - needed <= needed + CONCURRENCY
    told = ("id", "sample", "answer", "votes", "drawn", "vote_share", "key")
    pairs = zip(labels(config), labels(whole), strict=True)
    assert all(one[name] == other[name] for one, other in pairs for name in told)


def faulty(teacher: Teacher, answered: Counter[str], *, seed: int) -> None:
    """Half of the requests go wrong, each in one of six ways; `answered` counts the whole answers."""
    generator = random.Random(seed)
    half = b'{"choices": [{"message": {"content": "Answ'

    def reply(prompt: str, body: dict[str, Any]) -> Response:
        faults = [
            lambda: refusal(429, "slow down", **{"retry-after": "0"}),
            lambda: refusal(500, "oops", **{"retry-after": "0"}),
            lambda: refusal(503, "busy", **{"retry-after": "0"}),
            lambda: Response(half, media_type="application/json"),
            lambda: Response(half, media_type="application/json", headers={"content-length": "900"}),
            lambda: refusal(502, "bad gateway", **{"retry-after": "0"}),
        ]
        if generator.random() < 0.5:
            return generator.choice(faults)()
        answered[prompt] += 1
        return reasoned(prompt, body)

    teacher.reply = reply


def test_storms_resets_and_half_answers_lose_no_row_and_buy_none_twice(
    teacher: Teacher, tmp_path: Path
) -> None:
    answered: Counter[str] = Counter()
    faulty(teacher, answered, seed=3)
    names = [f"p{i}" for i in range(40)]
    config = config_for(teacher, tmp_path, prompts(*names), concurrency=8, max_attempts=2)
    for _ in range(30):
        try:
            run(config)
        except DecantError:
            continue
        assert [label["id"] for label in labels(config)] == names
        if summary(config)["done"] == 40:
            break
    assert summary(config)["by_error"] == {}
    assert answered == dict.fromkeys(names, 1)


def test_half_a_json_is_a_failed_row_that_the_next_run_asks_again(teacher: Teacher, tmp_path: Path) -> None:
    teacher.reply = lambda prompt, body: (
        Response(b'{"choices": [{"mess', media_type="application/json")
        if prompt == "b"
        else reasoned(prompt, body)
    )
    config = config_for(teacher, tmp_path, prompts("a", "b"))
    run(config)
    assert [label["error_class"] for label in labels(config)] == [None, "bad_response"]
    teacher.reply = reasoned
    run(config)
    assert (teacher.seen.count("a"), [label["answer"] for label in labels(config)]) == (1, ["A", "B"])


def test_an_answer_that_does_not_come_in_time_is_a_failed_row(teacher: Teacher, tmp_path: Path) -> None:
    teacher.delay_s = 0.5
    config = config_for(teacher, tmp_path, prompts("a"), endpoint={"request_timeout_s": 0.1})
    with pytest.raises(DecantError, match="timeout 1"):
        run(config)
    assert (labels(config)[0]["status"], stored(config)["failed"]) == ("failed", 1)


def test_a_disk_that_fills_up_stops_the_job_in_one_line_and_loses_nothing(
    teacher: Teacher, tmp_path: Path
) -> None:
    long = "so " * 8000
    teacher.reply = lambda prompt, body: answer(f"{long}\nAnswer: {prompt.upper()}")
    names = [f"p{i}" for i in range(60)]
    config = config_for(teacher, tmp_path, prompts(*names), concurrency=CONCURRENCY)
    # The largest file that the process may write stands in for the disk's last free block.
    full = start(config, before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000)))
    told = full.communicate(timeout=50)[1].decode()
    assert full.returncode == 2
    assert "labels.store.sqlite" in told
    assert "Traceback" not in told
    kept = stored(config)["done"]
    assert 0 < kept < 60
    run(config)
    assert summary(config)["reused"] == kept
    assert len(teacher.bodies) <= 60 + 2 * CONCURRENCY
    assert [label["answer"] for label in labels(config)] == [name.upper() for name in names]
