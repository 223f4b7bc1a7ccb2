"""`decant label --ray`: the same job by Ray's workers, with the same guarantees, one of them killed."""

import importlib.util
import os
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest

from decant.config import load_config
from decant.errors import ConfigError, EndpointError, StageError
from decant_distill.label import LabelConfig, run
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

# Ray warns of its own settings when it reads them.
pytestmark = pytest.mark.filterwarnings(r"ignore::DeprecationWarning:ray\..*")
CONCURRENCY = 8
with_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs Ray: pip install 'decant[ray]'"
)


@pytest.fixture(autouse=True)
def workers_find_decant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))


def askers() -> list[int]:
    """The processes of Ray's workers on this machine."""
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if b"ray::" in name and b"Asker" in name:
            found.append(int(folder.name))
    return found


@with_ray
@pytest.mark.timeout(120)
def test_a_job_on_ray_survives_a_killed_worker_and_buys_nothing_twice(
    teacher: Teacher, tmp_path: Path
) -> None:
    teacher.delay_s = 0.05
    names = [f"p{number}" for number in range(400)]
    config = config_for(teacher, tmp_path, prompts(*names), concurrency=CONCURRENCY, ray="local")
    before = set(askers())
    process = start(config)
    wait_until(lambda: len(teacher.bodies) > 100)
    os.kill(next(iter(set(askers()) - before)), signal.SIGKILL)
    assert process.wait(timeout=90) == 0
    asked = Counter(teacher.seen)
    assert set(asked) == set(names)
    assert sum(asked.values()) <= len(names) + CONCURRENCY // 2
    assert [label["id"] for label in labels(config)] == names
    assert stored(config)["done"] == 400
    run(config)
    assert (sum(asked.values()), summary(config)["reused"]) == (len(teacher.bodies), 400)


@with_ray
@pytest.mark.timeout(120)
def test_on_ray_too_a_budget_is_never_exceeded_and_a_wrong_key_stops_the_job(
    teacher: Teacher, tmp_path: Path
) -> None:
    dear = {"usd_per_million_completion_tokens": 1e6}
    changes = {"endpoint": dear, "task": {"max_tokens": 10}, "ray": "local", "ray_workers": 1}
    config = config_for(teacher, tmp_path, prompts(*"abcdef"), budget_usd=22, **changes)
    with pytest.raises(StageError, match=r"does not pay another request after \$15"):
        run(config)
    assert len(teacher.bodies) == 3
    teacher.reply = lambda prompt, body: refusal(401, "no such key")
    with pytest.raises(EndpointError, match="no such key"):
        run(config.with_changes(budget_usd=100))


def test_workers_of_a_cluster_need_a_store_that_they_can_share(teacher: Teacher, tmp_path: Path) -> None:
    config = config_for(teacher, tmp_path, prompts("a"), ray="10.0.0.1:6379")
    with pytest.raises(ConfigError, match="cannot share a SQLite file"):
        run(config)
    assert teacher.bodies == []


def test_a_batch_and_an_estimate_are_not_asked_by_ray(tmp_path: Path) -> None:
    endpoint = {"base_url": "http://x/v1", "model": "m"}
    values = {"data": tmp_path / "d", "output": tmp_path / "o", "endpoint": endpoint, "ray": "local"}
    with pytest.raises(ConfigError, match="leave format and estimate out"):
        load_config(LabelConfig, values={**values, "estimate": 5})
