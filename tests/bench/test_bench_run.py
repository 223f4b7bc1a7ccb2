import csv
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from decant.cli import main
from decant.config import load_config
from decant.endpoint import Endpoint
from decant.errors import ConfigError, EndpointError
from decant_bench.bench import require_valid, run
from decant_bench.bench_config import BenchConfig
from decant_bench.bench_result import BenchFolder, read_bench
from decant_bench.bench_run import run_load
from decant_bench.plan import make_plan
from decant_bench.self_check import InvalidRun
from tests.bench.bench_runs import run_result
from tests.bench.scripted_endpoint import Reply, ScriptedEndpoint, serving

FAULTS: dict[str, Reply] = {
    "bad_response": Reply(fault="garbage"),
    "timeout": Reply(fault="stall"),
    "stream_broken": Reply(fault="cut"),
    "auth": Reply(status=401),
    "server_error": Reply(status=500),
}


def configure(folder: Path, server: ScriptedEndpoint, **changes: Any) -> BenchConfig:
    values: dict[str, Any] = {
        "output": folder / "out",
        "endpoint": server.config,
        "workload": {"prompt_tokens": {"mean": 8}},
        "rate": 200.0,
        "requests": 20,
        "warmup": 0,
        # How busy this machine is says nothing about the code.
        "error_share": 1e6,
    }
    return load_config(BenchConfig, values=values | changes)


def bench(folder: Path, server: ScriptedEndpoint, **changes: Any) -> BenchFolder:
    run(configure(folder, server, **changes))
    return read_bench(folder / "out")


def by_word(replies: dict[str, Reply]) -> Callable[[str], Reply]:
    return lambda prompt: next((reply for word, reply in replies.items() if word in prompt), Reply())


def dataset(folder: Path, prompts: list[str]) -> dict[str, Any]:
    path = folder / "data.jsonl"
    path.write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in prompts), encoding="utf-8")
    return {"data": path}


def test_a_run_measures_every_request_and_writes_it_down(tmp_path: Path) -> None:
    with serving(lambda _: Reply(ttft_s=0.03, e2e_s=0.08)) as server:
        folder = bench(tmp_path, server)
    result = folder.result

    assert result.counts == {"offered": 20, "sent": 20, "completed": 20, "failed": 0}
    assert 0.03 <= result.latency["ttft_service_s"]["p50"]["value"] < 0.2
    assert 0.08 <= result.latency["e2e_service_s"]["p50"]["value"] < 0.3
    assert result.latency["e2e_service_s"]["p99"] == {"value": None, "low": None, "high": None, "needs": 368}
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "result.json",
        "requests.jsonl",
        "requests.csv",
        "latency.csv",
        "report.html",
    }
    with (tmp_path / "out/requests.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["error_kind"] for row in rows] == [""] * 20
    assert all(float(row["e2e_response_s"]) >= float(row["e2e_s"]) for row in rows)


def test_two_runs_of_one_seed_ask_the_same_at_the_same_times(tmp_path: Path) -> None:
    asked: list[Any] = []
    for name in "ab":
        with serving() as server:
            run(configure(tmp_path, server, output=tmp_path / name, seed=3))
            folder = read_bench(tmp_path / name)
            first_s = min(timing.intended_s or 0.0 for timing in folder.timings)
            due_s = [round((timing.intended_s or 0.0) - first_s, 6) for timing in folder.timings]
            asked.append((sorted(server.prompts), sorted(due_s)))

    assert asked[0] == asked[1]


def test_every_way_to_fail_is_counted_by_kind_and_none_is_dropped(tmp_path: Path) -> None:
    prompts = [*FAULTS, *(f"fine {i}" for i in range(5))]
    with serving(by_word(FAULTS)) as server:
        folder = bench(
            tmp_path,
            server,
            workload=dataset(tmp_path, prompts),
            requests=10,
            endpoint={**server.config, "request_timeout_s": 1.0},
            slo={"e2e_s": 30.0},
        )
    result = folder.result

    assert {kind: found["n"] for kind, found in result.errors.items()} == dict.fromkeys(FAULTS, 1)
    assert "1 s" in result.errors["timeout"]["example"]
    assert (result.counts["completed"], result.counts["failed"]) == (5, 5)
    assert result.goodput is not None
    assert result.goodput["share"] == 0.5, "of the offered requests, not of those that were answered"
    assert result.latency["e2e_service_s"]["n"] == 5


def test_the_run_ends_when_it_said_it_would(tmp_path: Path) -> None:
    prompts = ["stall", *(f"fine {i}" for i in range(5))]
    began_s = time.monotonic()
    with serving(by_word({"stall": Reply(fault="stall")})) as server:
        workload = dataset(tmp_path, prompts)
        folder = bench(tmp_path, server, workload=workload, requests=6, drain_s=0.5)
    # The server would stall for ever.
    assert time.monotonic() - began_s < 15
    assert {kind: found["n"] for kind, found in folder.result.errors.items()} == {"unfinished": 1}
    assert folder.result.counts["completed"] == 5


def test_when_nothing_completes_there_is_an_error_and_no_table(tmp_path: Path) -> None:
    with serving() as server:
        bench(tmp_path, server)
    with serving(lambda _: Reply(status=401)) as server:
        with pytest.raises(EndpointError, match=r"none of 20 requests completed: auth 20; the first: .*401"):
            run(configure(tmp_path, server))
        with pytest.raises(EndpointError, match="every warm-up request failed: auth 2"):
            run(configure(tmp_path, server, warmup=2))
    assert read_bench(tmp_path / "out").result.counts["completed"] == 20, "the earlier result stands"


async def test_an_endpoint_that_is_down_is_a_kind_of_failure(tmp_path: Path) -> None:
    down = ScriptedEndpoint(lambda _: Reply(), base_url="http://127.0.0.1:9/v1")
    config = configure(tmp_path, down, requests=3)
    endpoint = Endpoint(down.base_url, "m", None, {}, None)
    plan = make_plan(config, tmp_path / "plan")
    with pytest.raises(EndpointError, match="none of 3 requests completed: connect 3"):
        await run_load(config, endpoint, plan, folder=tmp_path)
    plan.conversations.close()


def test_a_closed_loop_keeps_its_clients_and_has_no_schedule_to_be_late_for(tmp_path: Path) -> None:
    with serving(lambda _: Reply(e2e_s=0.02)) as server:
        folder = bench(tmp_path, server, arrival="closed", rate=None, concurrency=3)

    assert server.most_at_once == 3
    assert all(timing.intended_s is None for timing in folder.timings)
    assert folder.result.latency["e2e_response_s"]["mean"] == folder.result.latency["e2e_service_s"]["mean"]


def test_a_trace_is_replayed_with_its_gaps_and_lengths(tmp_path: Path) -> None:
    rows = [{"timestamp": 300 * i, "input_length": 3 + i, "output_length": 5 + i} for i in range(4)]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    with serving() as server:
        trace = {"arrival": "trace", "trace": tmp_path / "t.jsonl", "trace_speed": 3.0}
        folder = bench(tmp_path, server, rate=None, requests=None, **trace)
    due_s = sorted(timing.intended_s or 0.0 for timing in folder.timings)

    assert [due - due_s[0] for due in due_s] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert [len(prompt.split()) for prompt in server.prompts] == [3, 4, 5, 6]
    assert [body["max_tokens"] for body in server.bodies] == [5, 6, 7, 8]


def test_a_conversation_goes_on_with_what_was_answered_and_ends_where_it_fails(tmp_path: Path) -> None:
    with serving(lambda _: Reply(text="well then")) as server:
        bench(tmp_path, server, workload={"turns": 2, "prompt_tokens": {"mean": 5}}, requests=3)
    longest = [body["messages"] for body in server.bodies if len(body["messages"]) > 1]
    assert [[m["role"] for m in messages] for messages in longest] == [["user", "assistant", "user"]] * 3
    assert {messages[1]["content"] for messages in longest} == {"well then"}

    failed: set[str] = set()

    def fail_first(prompt: str) -> Reply:
        status = 200 if failed else 500
        failed.add(prompt)
        return Reply(status=status)

    with serving(fail_first) as server:
        folder = bench(tmp_path, server, workload={"turns": 3, "prompt_tokens": {"mean": 5}}, requests=2)
    assert {kind: found["n"] for kind, found in folder.result.errors.items()} == {
        "server_error": 1,
        "turn_skipped": 2,
    }
    assert folder.result.counts == {"offered": 6, "sent": 4, "completed": 3, "failed": 3}


@pytest.mark.parametrize("route", ["chat", "completions"])
@pytest.mark.parametrize("stream", [True, False])
def test_both_routes_are_measured_streamed_or_whole(tmp_path: Path, route: str, stream: bool) -> None:
    with serving(lambda _: Reply(e2e_s=0.02)) as server:
        result = bench(tmp_path, server, route=route, stream=stream, requests=5).result

    assert result.counts["completed"] == 5
    assert result.latency["ttft_service_s"]["n"] == (5 if stream else 0)
    assert result.latency["e2e_service_s"]["p50"]["value"] is None, "five are too few for a median's interval"
    assert result.latency["e2e_service_s"]["mean"] >= 0.02


def test_the_warm_up_asks_nothing_that_is_measured_and_is_not_measured(tmp_path: Path) -> None:
    with serving() as server:
        folder = bench(tmp_path, server, warmup=4, requests=6)

    assert len(set(server.prompts)) == 10
    assert (len(folder.records), folder.result.warmup) == (6, {"completed": 4})


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"rate": None}, "arrival poisson needs rate"),
        ({"arrival": "closed"}, "arrival closed has no rate"),
        ({"requests": None}, "set requests or duration_s"),
        ({"arrival": "ramp", "rate_end": 5.0}, "needs duration_s"),
        ({"stream": False, "slo": {"ttft_s": 1.0}}, "without a stream"),
        ({"workload": {"prompt_tokens": {"kind": "normal"}}}, "a normal length has a positive std"),
        ({"workload": {"prompt_token": 5}}, "did you mean prompt_tokens"),
    ],
)
def test_a_load_that_makes_no_sense_is_refused(
    tmp_path: Path, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        configure(tmp_path, ScriptedEndpoint(lambda _: Reply(), base_url="http://127.0.0.1:9/v1"), **changes)


def test_the_command_line_knows_the_verbs_of_two_words(tmp_path: Path, capsys: Any) -> None:
    assert main(["bench"]) == 0
    assert "bench sweep" in capsys.readouterr().out
    assert main(["bench", "swep"]) == 2
    assert "did you mean sweep?" in capsys.readouterr().err
    assert main(["bench", "run", "--output", str(tmp_path / "out")]) == 2
    assert "endpoint is required" in capsys.readouterr().err


def test_a_run_that_is_not_valid_says_why_and_where_its_numbers_are(tmp_path: Path) -> None:
    result = run_result("load").model_copy(update={"valid": False, "doubts": ("the loop lagged",)})
    with pytest.raises(InvalidRun, match=r"load is not valid: the loop lagged; .* in .*out") as caught:
        require_valid(result, tmp_path / "out")
    assert caught.value.exit_code == 3
