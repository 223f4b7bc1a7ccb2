"""`decant label` through the files of a Batch API: what goes out, what comes back, what is still open."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from decant.errors import ConfigError, DataError, StageError
from decant_distill.label import LabelConfig, run
from tests.distill.loopback_teacher import (
    Teacher,
    config_for,
    labels,
    prompts,
    serving,
    stored,
    summary,
    write_rows,
)

OFFLINE = Teacher()


def config_of(folder: Path, rows: list[Any], **changes: Any) -> LabelConfig:
    return config_for(OFFLINE, folder, rows, format="openai-batch", **changes)


def requests(config: LabelConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in config.batch_path.read_text(encoding="utf-8").splitlines()]


def result(request: dict[str, Any], text: str, *, finish_reason: str = "stop") -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    body = {"id": "x", "model": "big", "choices": [choice], "usage": usage}
    return {"custom_id": request["custom_id"], "response": {"status_code": 200, "body": body}, "error": None}


def answered(
    config: LabelConfig,
    folder: Path,
    reply: Callable[[str], str] = lambda prompt: f"Answer: {prompt.upper()}",
) -> LabelConfig:
    """The config with the results of its last batch, in the opposite order."""
    lines = [result(one, reply(one["body"]["messages"][-1]["content"])) for one in reversed(requests(config))]
    return config.with_changes(batch_results=write_rows(folder / "results.jsonl", lines))


def test_a_batch_goes_out_and_comes_back_in_any_order(tmp_path: Path) -> None:
    config = config_of(tmp_path, prompts("a", "b", "a"))
    run(config)
    sent = requests(config)
    assert [one["body"]["messages"][0]["content"] for one in sent] == ["a", "b"]
    assert {(one["method"], one["url"]) for one in sent} == {("POST", "/v1/chat/completions")}
    assert not config.output.exists()
    run(answered(config, tmp_path))
    assert [label["answer"] for label in labels(config)] == ["A", "B", "A"]
    assert summary(config)["tokens"] == {"prompt": 20, "completion": 10}


def test_what_was_answered_in_a_batch_is_not_asked_online(tmp_path: Path) -> None:
    config = config_of(tmp_path, prompts("a", "b"))
    run(config)
    run(answered(config, tmp_path))
    with serving(Teacher()) as teacher:
        online = config_for(teacher, tmp_path, prompts("a", "b", "c"))
        run(online)
        assert teacher.seen == ["c"]


def test_failed_and_missing_results_stay_open_for_the_next_batch(tmp_path: Path) -> None:
    config = config_of(tmp_path, prompts("good", "refused", "expired", "missing"))
    run(config)
    good, refused, expired, _ = requests(config)
    lines: list[Any] = [
        result(good, "Answer: yes"),
        {"custom_id": refused["custom_id"], "error": None,
         "response": {"status_code": 400, "body": {"error": {"message": "too long"}}}},
        {"custom_id": expired["custom_id"], "response": None,
         "error": {"code": "batch_expired", "message": "late"}},
        {**result(good, "Answer: no"), "custom_id": "somebody else's"},
        '{"custom_id": "hal',
    ]  # fmt: skip
    config = config.with_changes(batch_results=write_rows(tmp_path / "results.jsonl", lines))
    run(config)
    assert stored(config) == {"pending": 1, "leased": 0, "done": 1, "failed": 2, "filtered": 0}
    assert [one["body"]["messages"][0]["content"] for one in requests(config)] == ["missing"]
    run(config.with_changes(batch_results=None))
    assert len(requests(config)) == 3


def test_samples_that_do_not_agree_ask_for_another_batch(tmp_path: Path) -> None:
    config = config_of(tmp_path, prompts("a"), samples=2, max_samples=6, temperature=1.0)
    run(config)
    words = iter(["yes", "no", *["yes"] * 4])
    second = answered(config, tmp_path, lambda prompt: f"Answer: {next(words)}")
    run(second)
    assert (len(requests(config)), config.output.exists()) == (4, False)
    run(answered(config, tmp_path, lambda prompt: f"Answer: {next(words)}"))
    assert [label["votes"] for label in labels(config)].count(5) == 5


def test_a_batch_that_the_budget_may_not_pay_is_not_written(tmp_path: Path) -> None:
    dear = {"usd_per_million_completion_tokens": 1e6}
    changes = {"endpoint": dear, "task": {"max_tokens": 5}, "budget_usd": 9}
    config = config_of(tmp_path, prompts("a", "b"), **changes)
    with pytest.raises(StageError, match=r"may cost up to \$10"):
        run(config)
    assert not config.batch_path.exists()


def test_the_results_of_another_job_are_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path, prompts("a"))
    results = write_rows(tmp_path / "results.jsonl", [{"custom_id": "x", "response": None, "error": None}])
    with pytest.raises(DataError, match="no result of this job"):
        run(config.with_changes(batch_results=results))
    with pytest.raises(ConfigError, match="needs format"):
        config_for(OFFLINE, tmp_path, prompts("a"), batch_results=results)
