"""`decant label` with a budget: what it costs, and that it never costs more."""

import asyncio
from pathlib import Path

import pytest

from decant.config import load_config
from decant.errors import ConfigError, StageError
from decant.wire import Usage
from decant_distill.label import LabelConfig, run
from decant_distill.label_spend import Prices, Purse
from tests.distill.loopback_teacher import (
    Teacher,
    config_for,
    prompts,
    stored,
    summary,
)


def test_the_time_of_reused_answers_stays_in_the_summary(teacher: Teacher, tmp_path: Path) -> None:
    teacher.delay_s = 0.1
    config = config_for(teacher, tmp_path, prompts("a", "b"), concurrency=2)
    run(config)
    run(config)
    assert summary(config)["run_s"] < 0.01
    assert 0.1 <= summary(config)["wall_s"] < 1


def test_the_budget_is_a_hard_stop_that_leaves_a_resumable_job(teacher: Teacher, tmp_path: Path) -> None:
    dear = {"usd_per_million_completion_tokens": 1e6}
    changes = {"endpoint": dear, "task": {"max_tokens": 5}, "concurrency": 8, "budget_usd": 12}
    config = config_for(teacher, tmp_path, prompts(*"abcdef"), **changes)
    for _ in range(2):
        with pytest.raises(StageError, match=r"does not pay another request after \$10"):
            run(config)
        assert len(teacher.bodies) == 2
    run(config.with_changes(budget_usd=30))
    assert (len(teacher.bodies), summary(config)["cost_usd"]) == (6, pytest.approx(30))


def test_hardware_paid_by_the_hour_stops_at_the_budget(teacher: Teacher, tmp_path: Path) -> None:
    teacher.delay_s = 0.05
    changes = {"endpoint": {"price_per_hour": 3600.0}, "concurrency": 1, "budget_usd": 0.3}
    config = config_for(teacher, tmp_path, prompts(*(f"p{i}" for i in range(50))), **changes)
    with pytest.raises(StageError, match="raise budget_usd"):
        run(config)
    assert 1 <= stored(config)["done"] <= 6


def test_answers_carry_the_hours_that_their_hardware_ran(teacher: Teacher, tmp_path: Path) -> None:
    teacher.delay_s = 0.02
    config = config_for(
        teacher, tmp_path, prompts(*"abcdef"), endpoint={"price_per_hour": 3600.0}, concurrency=2
    )
    run(config)
    written = summary(config)
    assert 0.06 <= written["cost_usd"] <= written["wall_s"]


async def test_a_request_waits_while_others_hold_the_budget() -> None:
    request = {"messages": [], "max_tokens": 10}
    purse = Purse(Prices(usd_per_completion_token=1.0), budget_usd=15, paid_usd=0)
    assert await purse.reserve(request)
    waiting = asyncio.create_task(purse.reserve(request))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert purse.settle(request, Usage(prompt_tokens=3, completion_tokens=2)) == 2
    assert await waiting


async def test_an_answer_without_usage_is_charged_the_worst_case_and_counted() -> None:
    request = {"messages": [], "max_tokens": 10}
    purse = Purse(Prices(usd_per_completion_token=1.0), budget_usd=15, paid_usd=0)
    await purse.reserve(request)
    assert (purse.settle(request, None), purse.unmetered) == (10, 1)
    assert not await purse.reserve(request)


def test_a_budget_without_prices_is_refused() -> None:
    values = {
        "data": "d",
        "output": "o",
        "endpoint": {"base_url": "http://x/v1", "model": "m"},
        "budget_usd": 1,
    }
    with pytest.raises(ConfigError, match="needs the endpoint's prices"):
        load_config(LabelConfig, values=values)
