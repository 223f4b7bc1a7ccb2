"""`decant label` through a Batch API, which is the gateway's own: round trips, refusals, kills."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from decant.config import load_config
from decant.errors import ConfigError, DecantError, EndpointError, StageError
from decant_distill.label import LabelConfig, run
from tests.distill.loopback_teacher import labels, prompts, start, stored, summary, wait_until, write_rows

pytestmark = pytest.mark.timeout(120)


class Provider:
    """A `decant serve` that keeps batches."""

    def __init__(self, base_url: str, log: Path) -> None:
        self.base_url = base_url
        self._log = log

    def batches(self) -> list[dict[str, Any]]:
        return httpx.get(f"{self.base_url}/batches", params={"limit": 100}).json()["data"]

    def answered(self) -> int:
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        return sum(json.loads(line)["status"] == 200 for line in lines)


@contextmanager
def serving(folder: Path, *answers: dict[str, Any], options: tuple[str, ...] = ()) -> Generator[Provider]:
    folder.mkdir(exist_ok=True)
    script, ready, log = folder / "script.json", folder / "ready.json", folder / "timing.jsonl"
    script.write_text(json.dumps({"answers": answers}))
    command = [
        sys.executable,
        "-m",
        "decant",
        "serve",
        str(script),
        "--port",
        "0",
        "--ready-file",
        str(ready),
    ]
    command += ["--timing-log", str(log), "--threads", "1", *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with (folder / "serve.log").open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
    try:
        give_up_at = time.monotonic() + 60
        while not ready.exists():
            assert process.poll() is None
            assert time.monotonic() < give_up_at
            time.sleep(0.02)
        yield Provider(json.loads(ready.read_text())["base_url"], log)
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[Provider]:
    answers = (
        {"match": "bad", "status": 400, "message": "cannot be answered"},
        {"chunks": ["because\n", "Answer: yes"], "ttft_s": 0.05, "prompt_tokens": 10},
    )
    with serving(tmp_path / "provider", *answers, options=("--batches", str(tmp_path / "b"))) as one:
        yield one


def config_for(provider: Provider, folder: Path, rows: list[Any], **changes: Any) -> LabelConfig:
    values = {
        "data": write_rows(folder / "data.jsonl", rows),
        "output": folder / "labels.jsonl",
        "endpoint": {"base_url": provider.base_url, "model": "script", **changes.pop("endpoint", {})},
        "format": "batch-api",
        "batch_poll_s": 0.05,
        **changes,
    }
    return load_config(LabelConfig, values=values)


def test_a_job_goes_out_in_batches_and_comes_back(provider: Provider, tmp_path: Path) -> None:
    prices = {"usd_per_million_prompt_tokens": 1e5, "usd_per_million_completion_tokens": 1e5}
    rows = prompts("a", "b", "bad", "d", "a")
    config = config_for(provider, tmp_path, rows, batch_size=2, endpoint=prices)
    run(config)
    assert [label["answer"] for label in labels(config)] == ["yes", "yes", None, "yes", "yes"]
    assert labels(config)[2]["error_class"] == "bad_request"
    assert "cannot be answered" in labels(config)[2]["error"]
    assert (summary(config)["done"], round(summary(config)["cost_usd"], 6)) == (4, 3.6)
    assert sorted(batch["request_counts"]["total"] for batch in provider.batches()) == [2, 2]
    run(config)
    assert summary(config)["reused"] == 3
    assert sorted(batch["request_counts"]["total"] for batch in provider.batches()) == [1, 2, 2]


def test_what_a_batch_answered_is_not_asked_online_and_the_other_way_round(
    provider: Provider, tmp_path: Path
) -> None:
    config = config_for(provider, tmp_path, prompts("a", "b"))
    run(config)
    online = config_for(provider, tmp_path, prompts("a", "b", "c"), format="online")
    run(online)
    run(config_for(provider, tmp_path, prompts("a", "b", "c")))
    assert (provider.answered(), len(provider.batches())) == (3, 1)


def test_samples_that_do_not_agree_go_out_in_another_batch(provider: Provider, tmp_path: Path) -> None:
    config = config_for(provider, tmp_path, prompts("a"), samples=2, max_samples=9, temperature=1.0)
    run(config)
    # Those of one second are listed in no order of their own.
    totals = [batch["request_counts"]["total"] for batch in provider.batches()]
    assert 2 in totals
    assert len(totals) > 1
    assert summary(config)["done"] == sum(totals)


def test_rows_that_the_teacher_misses_are_asked_with_the_hint_in_a_second_batch(tmp_path: Path) -> None:
    answers = (
        {"match": "right answer is no", "chunks": ["It was closed.\n", "Answer: no"]},
        {"match": "right answer is 7", "chunks": ["The hint says so.\n", "Answer: 7"]},
        {"chunks": ["because\n", "Answer: yes"]},
    )
    rows = [{"id": gold, "prompt": f"q{gold}", "gold": gold} for gold in ("yes", "no", "7")]
    with serving(tmp_path / "provider", *answers, options=("--batches", str(tmp_path / "b"))) as provider:
        config = config_for(provider, tmp_path, rows, hint=True)
        run(config)
        batches = provider.batches()
    told = [(label["id"], label["answer"], label["error_class"]) for label in labels(config)]
    assert told == [
        ("yes", "yes", None),
        ("no", "yes", None),
        ("no", "no", None),
        ("7", "yes", None),
        ("7", None, "hint_told"),
    ]
    assert sorted(batch["request_counts"]["total"] for batch in batches) == [2, 3]
    assert [label["prompt"][-1]["content"] for label in labels(config) if label.get("hinted")] == [
        "qno",
        "q7",
    ]


def killed_when(config: LabelConfig, is_time: Callable[[], bool]) -> None:
    process = start(config)
    wait_until(is_time)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_job_that_is_killed_while_batches_are_out_finds_them_again(
    provider: Provider, tmp_path: Path
) -> None:
    names = [f"p{number}" for number in range(60)]
    config = config_for(provider, tmp_path, prompts(*names), batch_size=25)
    killed_when(config, lambda: len(provider.batches()) >= 1)
    killed_when(config, lambda: provider.answered() >= 10)
    run(config)
    assert [label["id"] for label in labels(config)] == names
    assert all(label["answer"] == "yes" for label in labels(config))
    assert sorted(batch["request_counts"]["total"] for batch in provider.batches()) == [10, 25, 25]
    assert provider.answered() == len(names)


def test_a_batch_that_was_submitted_but_not_recorded_is_found_by_its_metadata(
    provider: Provider, tmp_path: Path
) -> None:
    config = config_for(provider, tmp_path, prompts("a", "b"))
    # Killed as soon as the provider knows of a batch: the job has not heard of it yet, or only just.
    patient = config.with_changes(batch_poll_s=60.0)
    killed_when(patient, lambda: len(provider.batches()) == 1)
    assert stored(config)["leased"] == 2
    run(config)
    assert (len(provider.batches()), provider.answered()) == (1, 2)


def test_a_batch_that_was_never_submitted_is_submitted_by_the_next_run(
    provider: Provider, tmp_path: Path
) -> None:
    config = config_for(provider, tmp_path, prompts("a", "b"))
    killed_when(config, lambda: config_has_leases(config))
    run(config)
    assert (len(provider.batches()), provider.answered()) == (1, 2)


def config_has_leases(config: LabelConfig) -> bool:
    return Path(config.store_path).exists() and stored(config)["leased"] == 2


def test_a_batch_that_the_provider_refuses_leaves_its_requests_open(
    provider: Provider, tmp_path: Path
) -> None:
    config = config_for(provider, tmp_path, prompts("a"), endpoint={"model": "nobody"})
    with pytest.raises(
        EndpointError, match=r"refused the batch batch_.*not served here.*run the same command"
    ):
        run(config)
    assert stored(config)["pending"] == 1


def test_an_endpoint_without_batches_says_so_before_anything_is_spent(tmp_path: Path) -> None:
    with serving(tmp_path / "plain", {"chunks": ["Answer: x"]}) as plain:
        config = config_for(plain, tmp_path, prompts("a"))
        with pytest.raises(DecantError, match=r"--batches FOLDER.*needs /v1/files and /v1/batches"):
            run(config)
        assert plain.answered() == 0


def test_a_batch_that_the_budget_may_not_pay_is_not_submitted(provider: Provider, tmp_path: Path) -> None:
    dear = {"usd_per_million_completion_tokens": 1e6}
    changes: dict[str, Any] = {"endpoint": dear, "task": {"max_tokens": 5}, "budget_usd": 9}
    with pytest.raises(StageError, match=r"may cost up to \$10"):
        run(config_for(provider, tmp_path, prompts("a", "b"), **changes))
    assert provider.batches() == []
    with pytest.raises(ConfigError, match="needs format = online"):
        config_for(provider, tmp_path, prompts("a"), estimate=2)
