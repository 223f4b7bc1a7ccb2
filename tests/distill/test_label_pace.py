"""How fast a labeling job asks: halved by refusals, restored by answers, within the limits it was told."""

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response

from decant_distill.label import run
from decant_distill.label_pace import Pace
from tests.distill.loopback_teacher import Teacher, config_for, labels, prompts, reasoned, refusal


async def test_refusals_of_one_moment_halve_once_and_answers_restore() -> None:
    now = [0.0]
    pace = Pace(8, clock=lambda: now[0])
    turns = [await pace.turn(1) for _ in range(8)]
    now[0] = 1.0
    for turn in turns[:3]:
        pace.refused(turn, None)
    assert pace.at_once == 4
    for turn in turns[3:]:
        pace.ended(turn)
    now[0] = 2.0
    for _ in range(40):
        pace.answered(await pace.turn(1), {})
    assert pace.at_once == 8


async def test_nobody_is_sent_before_the_time_that_was_told() -> None:
    now = [0.0]
    pace = Pace(2, clock=lambda: now[0])
    pace.refused(await pace.turn(1), 0.05)
    waiting = asyncio.create_task(pace.turn(1))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    now[0] = 0.06
    await asyncio.wait_for(waiting, timeout=1)


@pytest.mark.parametrize("reset", ["1m0s", "60000ms"])
async def test_a_bucket_that_was_told_fills_evenly(reset: str) -> None:
    now = [0.0]
    pace = Pace(9, clock=lambda: now[0])
    told = {"limit-requests": "60", "remaining-requests": "1", "reset-requests": reset}
    headers = {f"x-ratelimit-{name}": value for name, value in told.items()}
    pace.answered(await pace.turn(1), headers)
    await pace.turn(1)
    waiting = asyncio.create_task(pace.turn(1))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    now[0] = 2.1
    await asyncio.wait_for(waiting, timeout=2)


def test_a_storm_of_429_costs_time_and_no_row(teacher: Teacher, tmp_path: Path) -> None:
    tries: Counter[str] = Counter()

    def busy(prompt: str, body: dict[str, Any]) -> Response:
        tries[prompt] += 1
        if teacher.in_flight > 3:
            return refusal(429, "slow down", **{"retry-after": "0"})
        return reasoned(prompt, body)

    teacher.reply, teacher.delay_s = busy, 0.005
    config = config_for(
        teacher, tmp_path, prompts(*(f"p{i}" for i in range(80))), concurrency=16, max_attempts=2
    )
    run(config)
    assert [label["status"] for label in labels(config)] == ["done"] * 80
    assert teacher.most_in_flight > 8
    refused = sum(tries.values()) - 80
    assert refused < 80


def test_an_endpoint_that_only_refuses_fails_after_max_attempts(teacher: Teacher, tmp_path: Path) -> None:
    teacher.reply = lambda prompt, body: (
        refusal(429, "slow down", **{"retry-after": "0"}) if prompt == "b" else reasoned(prompt, body)
    )
    config = config_for(teacher, tmp_path, prompts("a", "b"), concurrency=1, max_attempts=2)
    run(config)
    assert [label["error_class"] for label in labels(config)] == [None, "rate_limited"]
    assert teacher.seen.count("b") == 2
    assert "gave up after 2 tries" in labels(config)[1]["error"]
