import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from decant.config import load_config
from decant.errors import ConfigError, DataError, EndpointError
from decant_bench.evaluate import EvalConfig, run
from decant_bench.predictions import PredictionFolder, read_predictions
from tests.bench.scripted_endpoint import Reply, ScriptedEndpoint, serving

DATA = [
    {"id": "a", "prompt": "what is one", "gold": "1", "length": 2, "group": "sums"},
    {"id": "b", "prompt": "what is two", "gold": "2", "length": 3, "group": "sums"},
    {"id": "c", "prompt": "what is three"},
]


def answers(prompt: str) -> Reply:
    return Reply(text="Counting on.\nAnswer: 1", status=500 if "two" in prompt else 200)


def write_data(folder: Path, rows: list[Any]) -> Path:
    path = folder / "data.jsonl"
    path.write_text(
        "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8"
    )
    return path


def configure(folder: Path, server: ScriptedEndpoint, rows: list[Any] = DATA, **changes: Any) -> EvalConfig:
    values: dict[str, Any] = {
        "data": write_data(folder, rows),
        "output": folder / "out",
        "stage": "student",
        "endpoint": server.config,
        "rate": 100.0,
        "concurrency": 2,
        "warmup": 0,
        "saturate_requests": 0,
    }
    return load_config(EvalConfig, values=values | changes)


def evaluate(
    folder: Path, server: ScriptedEndpoint, rows: list[Any] = DATA, **changes: Any
) -> PredictionFolder:
    run(configure(folder, server, rows, **changes))
    return read_predictions(folder / "out")


def test_every_line_is_a_row_scored_or_with_its_reason(tmp_path: Path) -> None:
    with serving(answers) as server:
        folder = evaluate(tmp_path, server, [*DATA, "not json", {"id": "e", "gold": "5"}, DATA[0]])
    rows = folder.predictions

    assert [row.id for row in rows] == ["a", "b", "c", "line-4", "e", "a (line 6)"]
    assert [row.status for row in rows] == ["done", "failed", "done", "failed", "failed", "failed"]
    assert [row.correct for row in rows] == [True, False, None, None, None, None]
    assert [row.error.kind if row.error else None for row in rows[:4]] == [
        None,
        "server_error",
        None,
        "bad_row",
    ]
    assert folder.evaluation.counts == {
        "requests": 3,
        "completed": 2,
        "errors": {"server_error": 1, "bad_row": 3},
    }


def test_a_prediction_keeps_answer_reasoning_and_where_it_belongs(tmp_path: Path) -> None:
    with serving(answers) as server:
        row = evaluate(tmp_path, server).predictions[0]

    assert (row.answer, row.reasoning, row.response) == ("1", "Counting on.", "Counting on.\nAnswer: 1")
    assert (row.gold, row.length, row.group, row.finish_reason) == ("1", 2, "sums", "stop")


def test_response_latency_holds_the_delay_that_service_latency_leaves_out(tmp_path: Path) -> None:
    with serving(answers) as server:
        folder = evaluate(tmp_path, server)
    timing = folder.predictions[0].request_timing

    assert timing is not None
    assert timing.response_s == pytest.approx((timing.service_s or 0) + timing.send_delay_s)
    assert timing.send_delay_s >= 0


def test_warm_up_prompts_are_never_measured_prompts(tmp_path: Path) -> None:
    with serving(lambda _: Reply()) as server:
        folder = evaluate(tmp_path, server, warmup=6)
    prompts = server.prompts

    assert not set(prompts[:6]) & {row["prompt"] for row in DATA}
    assert sorted(prompts[6:]) == sorted(row["prompt"] for row in DATA)
    assert (len(folder.predictions), folder.evaluation.warmup) == (3, {"n": 6, "failed": 0})


def test_the_burst_finds_a_capacity_and_is_in_no_latency(tmp_path: Path) -> None:
    with serving(lambda _: Reply(e2e_s=0.02), slots=1) as server:
        folder = evaluate(tmp_path, server, saturate_requests=12)

    assert 0 < (folder.evaluation.saturation.requests_per_s or 0.0) <= 50
    assert folder.evaluation.latency["e2e_service_s"]["n"] == 3
    assert len(server.prompts) == 15


def test_an_endpoint_paid_by_the_token_gets_no_burst(tmp_path: Path) -> None:
    with serving() as server:
        priced = server.config | {"usd_per_million_completion_tokens": 2.0}
        evaluate(tmp_path, server, endpoint=priced, saturate_requests=64)

    assert len(server.prompts) == 3


def test_requests_are_greedy_unless_told_otherwise(tmp_path: Path) -> None:
    with serving() as server:
        evaluate(tmp_path, server)

    assert {body["temperature"] for body in server.bodies} == {0.0}


def test_no_completed_request_is_an_error_and_leaves_nothing_behind(tmp_path: Path) -> None:
    with (
        serving(lambda _: Reply(status=500)) as server,
        pytest.raises(EndpointError, match="none of 3 requests"),
    ):
        evaluate(tmp_path, server)

    assert not (tmp_path / "out").exists()


def test_an_endpoint_that_is_down_is_named(tmp_path: Path) -> None:
    with serving() as server:
        config = configure(tmp_path, server)

    with pytest.raises(EndpointError, match=server.base_url):
        run(config)


def test_a_dataset_without_one_usable_line_is_an_error(tmp_path: Path) -> None:
    with serving() as server, pytest.raises(DataError, match="line 1: not JSON"):
        evaluate(tmp_path, server, ["{"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate": None}, "arrival poisson needs a rate"),
        ({"arrival": "closed"}, "arrival closed has no rate"),
        ({"saturate_requests": 3}, "4 or more for 2 clients"),
        ({"ratee": 3.0}, "did you mean rate"),
    ],
)
def test_a_load_that_makes_no_sense_is_refused(
    tmp_path: Path, changes: Mapping[str, Any], message: str
) -> None:
    with serving() as server, pytest.raises(ConfigError, match=message):
        configure(tmp_path, server, **changes)


def test_conditions_are_recorded_with_the_numbers(tmp_path: Path) -> None:
    with serving() as server:
        record = evaluate(tmp_path, server, seed=7, limit=2).evaluation

    assert (record.load["arrival"], record.load["rate"], record.load["seed"]) == ("poisson", 100.0, 7)
    assert record.load["requests"] == 2
    assert record.hardware["cores"] >= 1
    assert record.versions["python"].startswith("3.")
    assert record.config["stage"] == "student"


@pytest.mark.parametrize(
    ("form", "text"),
    [("tag", "Two. <answer>1</answer>"), ("json", '{"reasoning": "Two.", "answer": "1"}')],
)
def test_an_answer_is_read_in_the_form_that_was_asked_for(tmp_path: Path, form: str, text: str) -> None:
    with serving(lambda _: Reply(text=text)) as server:
        row = evaluate(tmp_path, server, answers={"form": form}).predictions[0]
        asked = server.bodies[0]

    assert (row.answer, row.reasoning, row.correct) == ("1", "Two.", True)
    assert ("response_format" in asked) == (form == "json")


def test_a_marker_is_no_answer_where_a_tag_was_asked_for(tmp_path: Path) -> None:
    with serving(lambda _: Reply(text="Answer: 1")) as server:
        row = evaluate(tmp_path, server, answers={"form": "tag"}).predictions[0]

    assert (row.answer, row.correct, row.status) == (None, False, "done")
