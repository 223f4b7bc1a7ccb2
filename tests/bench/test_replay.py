import time
from collections.abc import Mapping
from typing import Any

import pytest

from decant.client import Completion, OpenAIClient
from decant.timing import RequestTiming
from decant_bench.replay import (
    Exchange,
    ReplayRequest,
    cached_prompt_share,
    measure_saturation,
    replay_closed,
    replay_open,
)
from tests.bench.scripted_endpoint import Reply, ScriptedEndpoint

OFFSETS_S = tuple(0.03 * index for index in range(20))


def requests(n: int) -> list[ReplayRequest]:
    return [
        ReplayRequest(f"r{i}", {"model": "m", "messages": [{"role": "user", "content": f"prompt {i}"}]})
        for i in range(n)
    ]


def ignore(_: Exchange) -> None:
    """Nobody watches."""


def timing(*, actual_s: float, e2e_s: float | None, cached: int | None = None) -> RequestTiming:
    return RequestTiming(
        request_id="r",
        actual_s=actual_s,
        e2e_s=e2e_s,
        prompt_tokens=10,
        cached_tokens=cached,
        error_kind="timeout" if e2e_s is None else None,
    )


def exchange(*, actual_s: float, e2e_s: float | None) -> Exchange:
    return Exchange("r", timing(actual_s=actual_s, e2e_s=e2e_s), None, None)


class BlockingClient:
    """Keeps the whole process busy during its first request, as a slow client would."""

    def __init__(self, busy_s: float) -> None:
        self._busy_s = busy_s

    async def chat(
        self,
        request: Mapping[str, Any],
        *,
        stream: bool = True,
        intended_s: float | None = None,
        request_id: str | None = None,
    ) -> Completion:
        actual_s = time.perf_counter()
        while time.perf_counter() < actual_s + self._busy_s:
            pass
        self._busy_s = 0.0
        stamped = RequestTiming(
            request_id=request_id or "", intended_s=intended_s, actual_s=actual_s, e2e_s=0.0
        )
        return Completion(
            text="",
            reasoning=None,
            finish_reason="stop",
            usage=None,
            logprobs=None,
            timing=stamped,
            model=None,
            headers={},
        )


async def test_requests_reach_the_server_when_the_schedule_says() -> None:
    async with (
        ScriptedEndpoint(lambda _: Reply(e2e_s=0.2)).running() as server,
        OpenAIClient(server.base_url, max_retries=0) as client,
    ):
        done = await replay_open(client, requests(20), OFFSETS_S, on_done=ignore)
    due_s = [item.timing.intended_s or 0.0 for item in done]
    late_s = [server.arrived_s[f"prompt {i}"] - due for i, due in enumerate(due_s)]

    assert [due - due_s[0] for due in due_s] == pytest.approx(OFFSETS_S)
    # A busy machine delays some requests; a replay that paces wrongly is early or late in all of them.
    assert 0 < min(late_s) < 0.01
    assert server.most_at_once > 1, "an open loop does not wait for answers"


async def test_what_is_measured_is_what_the_server_did() -> None:
    async with (
        ScriptedEndpoint(lambda _: Reply(ttft_s=0.06, e2e_s=0.15)).running() as server,
        OpenAIClient(server.base_url, max_retries=0) as client,
    ):
        done = await replay_open(client, requests(20), OFFSETS_S, on_done=ignore)
    errors_s: list[tuple[float, float]] = []
    for i, item in enumerate(done):
        assert item.timing.ttft_s is not None
        assert item.timing.e2e_s is not None
        first_s, last_s = server.wrote_s[f"prompt {i}"]
        sent_s = item.timing.actual_s
        errors_s.append((sent_s + item.timing.ttft_s - first_s, sent_s + item.timing.e2e_s - last_s))

    assert all(first > 0 and last > 0 for first, last in errors_s), "stamped before it was written"
    assert min(first for first, _ in errors_s) < 0.005
    assert min(last for _, last in errors_s) < 0.005
    assert min(item.timing.e2e_s or 0.0 for item in done) >= 0.15


async def test_a_late_request_is_charged_and_the_schedule_is_not_moved() -> None:
    done = await replay_open(BlockingClient(0.2), requests(3), (0.0, 0.05, 0.3), on_done=ignore)
    first, second, third = (item.timing for item in done)

    assert second.send_delay_s >= 0.15
    assert (second.response_s, second.service_s) == (second.send_delay_s, 0.0)
    assert (third.intended_s or 0.0) - (first.intended_s or 0.0) == pytest.approx(0.3)
    assert third.send_delay_s < second.send_delay_s


async def test_a_closed_loop_never_has_more_in_flight_than_clients() -> None:
    async with (
        ScriptedEndpoint(lambda _: Reply(e2e_s=0.02)).running() as server,
        OpenAIClient(server.base_url, max_retries=0) as client,
    ):
        done = await replay_closed(client, requests(12), clients=3, on_done=ignore)

    assert server.most_at_once == 3
    assert [item.request_id for item in done] == [f"r{i}" for i in range(12)]


async def test_a_failed_request_is_an_exchange_with_its_kind() -> None:
    async with (
        ScriptedEndpoint(
            lambda prompt: Reply(status=500 if prompt == "prompt 1" else 200)
        ).running() as server,
        OpenAIClient(server.base_url, max_retries=0) as client,
    ):
        done = await replay_closed(client, requests(3), clients=1, on_done=ignore)

    assert [item.timing.error_kind for item in done] == [None, "server_error", None]
    assert (done[1].completion, done[1].timing.status) == (None, 500)
    assert len(server.prompts) == 3, "a measured request is never retried"


async def test_two_slots_of_50_ms_never_show_much_more_than_40_per_second() -> None:
    async with (
        ScriptedEndpoint(lambda _: Reply(e2e_s=0.05), slots=2).running() as server,
        OpenAIClient(server.base_url, max_retries=0) as client,
    ):
        done = await replay_closed(client, requests(32), clients=4, on_done=ignore)

    assert 0 < (measure_saturation(done, clients=4).requests_per_s or 0.0) <= 42


def test_capacity_counts_only_the_time_in_which_every_client_is_busy() -> None:
    # Two clients, one second each: 2 done at 1 s and 2 at 2 s, when the last two are sent.
    burst = [exchange(actual_s=10.0 + second, e2e_s=1.0) for second in (0, 0, 1, 1, 2, 2)]

    found = measure_saturation(burst, clients=2)

    assert found.requests_per_s == pytest.approx(2.0)
    assert found.wall_s == pytest.approx(3.0)


def test_failed_requests_are_no_capacity() -> None:
    burst = [exchange(actual_s=float(second), e2e_s=None) for second in range(4)]

    found = measure_saturation(burst, clients=1)

    assert (found.requests_per_s, found.failed) == (None, 4)


def test_the_cached_share_is_over_the_requests_whose_server_tells() -> None:
    told = [timing(actual_s=0, e2e_s=1, cached=4), timing(actual_s=0, e2e_s=1, cached=8)]

    assert cached_prompt_share([*told, timing(actual_s=0, e2e_s=1)]) == pytest.approx(0.6)
    assert cached_prompt_share([timing(actual_s=0, e2e_s=1)]) is None
