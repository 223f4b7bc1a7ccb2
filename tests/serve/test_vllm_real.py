"""vLLM itself on a CPU, behind the gateway, over two ranks; needs DECANT_VLLM_PYTHON."""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

PYTHON = os.environ.get("DECANT_VLLM_PYTHON")

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(400),
    pytest.mark.skipif(PYTHON is None, reason="DECANT_VLLM_PYTHON names no interpreter with vLLM"),
]

RANKS = 2


@pytest.fixture(scope="module")
def delay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The file that says for how long rank 1 is kept busy before each forward."""
    file = tmp_path_factory.mktemp("delay") / "seconds"
    file.write_text("0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DECANT_SHARDS_DELAY", f"1:{file}")
        yield file


@pytest.fixture(scope="module")
def server(serve_for_session: Callable[..., Any], tiny_folder: Path, delay: Path) -> Iterator[Any]:
    """The tiny model over two ranks."""
    assert delay.exists()
    engine = ("--engine", "vllm", "--engine-python", PYTHON, "--tensor-parallel-size", RANKS)
    with serve_for_session(tiny_folder, *engine, "--context", 512, "--parallel", 4) as running:
        running.http.timeout = 120.0
        yield running


def timing(server: Any, **options: Any) -> Any:
    answer = server.chat("the mat said 3 4", **{"max_tokens": 24, "stream": True} | options)
    assert answer.status_code == 200, answer.text
    return server.timing(answer)


def test_the_golden_prompts_are_reproduced_over_two_ranks(server: Any) -> None:
    page = server.http.get(f"/v1/models/{server.model}").json()["decant"]
    assert (page["golden"]["checked"], page["golden"]["breaks"]) == (3, [])
    assert page["tensor_parallel_size"] == RANKS


def test_every_rank_is_there_and_the_stages_sum_to_the_whole(server: Any) -> None:
    record = timing(server)
    shards = record["shards"]
    assert [rank["rank"] for rank in record["ranks"]] == [0, 1]
    assert (shards["method"], shards["steps"], shards["prefill_steps"]) == ("clock", 24, 1)
    ledger = shards["latency"]
    assert sum(value for name, value in ledger.items() if name != "total_s") == pytest.approx(
        ledger["total_s"]
    )
    assert all(value >= 0 for name, value in ledger.items() if name != "residual_s")
    forwards = {rank["compute_s"] + rank["wait_s"] + rank["comm_s"] for rank in record["ranks"]}
    assert max(forwards) <= shards["cost_s"] + 1e-9


def test_no_step_is_lost_and_each_sums_to_its_forward(server: Any) -> None:
    timing(server)
    state = server.http.get("/health").json()["models"][server.model]["shards"]
    assert state["steps"] > 24
    lost = ("broken_sums", "mismatched", "incomplete", "dropped", "unreadable")
    assert {name: state[name] for name in lost} == dict.fromkeys(lost, 0)
    assert (
        'decant_rank_seconds_count{model="tiny",engine="vllm",rank="1",kind="wait"}'
        in server.http.get("/metrics").text
    )


def test_a_slow_rank_shows_as_its_compute_and_the_others_wait(server: Any, delay: Path) -> None:
    rounds: dict[str, list[Any]] = {"0": [], "0.02": []}
    for _ in range(3):
        for seconds, records in rounds.items():
            delay.write_text(seconds)
            records.append(timing(server))
    delay.write_text("0")

    def per_step(seconds: str, rank: int, kind: str) -> float:
        records = rounds[seconds]
        return sum(record["ranks"][rank][kind] for record in records) / sum(
            r["shards"]["steps"] for r in records
        )

    for rank, kind in ((1, "compute_s"), (0, "wait_s")):
        # A machine that does other things beside only adds to it; `python -m ranks` measures how exact it is.
        assert per_step("0.02", rank, kind) - per_step("0", rank, kind) >= 0.018
    assert per_step("0.02", 1, "held_up_s") == pytest.approx(per_step("0.02", 0, "wait_s"))


def test_requests_that_run_together_share_the_cost_of_their_steps(server: Any) -> None:
    def busy_s() -> float:
        return server.http.get("/health").json()["models"][server.model]["shards"]["busy_s"]

    async def ask() -> list[str]:
        body = {"model": server.model, "max_tokens": 16, "temperature": 0}
        async with httpx.AsyncClient(base_url=server.base_url, timeout=120.0) as client:
            asked = [{**body, "messages": [{"role": "user", "content": "cat " * n}]} for n in range(1, 5)]
            answers = await asyncio.gather(*(client.post("/chat/completions", json=one) for one in asked))
        return [answer.headers["x-request-id"] for answer in answers]

    before_s = busy_s()
    names = asyncio.run(ask())
    costs = [server.http.get(f"/v1/requests/{name}/timing").json()["shards"]["cost_s"] for name in names]
    assert sum(costs) == pytest.approx(busy_s() - before_s, rel=1e-6)


def test_too_long_a_prompt_is_refused_in_the_shape_of_openai(server: Any) -> None:
    refused = server.chat("cat " * 3000)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert refused.json()["error"]["type"] == "invalid_request_error"


def test_an_engine_that_is_killed_takes_its_ranks_along_and_comes_back(
    server: Any, ends: Callable[[int], bool]
) -> None:
    killed = server.engine_process()
    family = _descendants(killed)
    assert len(family) >= RANKS
    os.kill(killed, signal.SIGKILL)
    assert all(ends(process) for process in family)
    give_up = 1200
    while server.http.get("/ready").status_code != 200 and give_up:
        asyncio.run(asyncio.sleep(0.1))
        give_up -= 1
    assert timing(server)["shards"]["steps"] == 24


def _descendants(process: int) -> list[int]:
    """Its children, theirs, and so on."""
    assert sys.platform == "linux"
    children = [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    return [*children, *(below for child in children for below in _descendants(child))]
