"""Labeling workers that share a PostgreSQL store, one of them killed: what is lost, counted."""

import signal
from collections import Counter
from pathlib import Path

import pytest

from decant_distill.label import run
from tests.distill.loopback_teacher import (
    Teacher,
    config_for,
    labels,
    prompts,
    refusal,
    start,
    stored,
    summary,
    wait_until,
)
from tests.postgres_server import PASSWORD, PostgresServer

CONCURRENCY = 4


def test_of_two_workers_one_is_killed_and_nothing_is_lost_or_bought_twice(
    teacher: Teacher, tmp_path: Path, postgres: PostgresServer
) -> None:
    teacher.delay_s = 0.03
    names = [f"p{number}" for number in range(150)]
    changes = {"store": postgres.new_database(), "concurrency": CONCURRENCY}
    one = config_for(teacher, tmp_path, prompts(*names), **changes)
    other = one.with_changes(output=tmp_path / "other.jsonl")
    processes = [start(one), start(other)]
    wait_until(lambda: len(teacher.bodies) > 60)
    processes[0].kill()
    assert processes[0].wait() == -signal.SIGKILL
    assert processes[1].wait(timeout=50) == 0
    asked = Counter(teacher.seen)
    assert set(asked) == set(names)
    assert sum(asked.values()) <= len(names) + CONCURRENCY
    assert [label["id"] for label in labels(other)] == names
    assert all(label["answer"] == label["id"].upper() for label in labels(other))
    run(one)
    assert (len(teacher.bodies), summary(one)["reused"]) == (sum(asked.values()), len(names))
    assert stored(one) == {"pending": 0, "leased": 0, "done": 150, "failed": 0, "filtered": 0}
    assert labels(one) == labels(other)


def test_what_a_job_prints_names_the_store_without_its_password(
    teacher: Teacher, tmp_path: Path, postgres: PostgresServer, capfd: pytest.CaptureFixture[str]
) -> None:
    teacher.reply = lambda prompt, body: refusal(401, "no such key")
    config = config_for(teacher, tmp_path, prompts("a"), store=postgres.new_database())
    process = start(config)
    assert process.wait(timeout=50) == 2
    told = "".join(capfd.readouterr())
    assert "what was answered is kept in postgresql://postgres@" in told
    assert PASSWORD not in told
