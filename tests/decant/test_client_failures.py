import asyncio
import pickle
import time

import pytest

from decant.client import ApiError, Backoff, OpenAIClient
from decant.wire import error_object, sse_event
from tests.decant.raw_server import (
    ASK,
    END,
    HELLO,
    Reply,
    Server,
    answer,
    cut,
    reset,
    serving,
    stream,
)

FAST = Backoff(base_s=0.001)


async def failure(
    server: Server, *, max_retries: int = 0, timeout_s: float = 5, streamed: bool = True
) -> ApiError:
    async with OpenAIClient(
        server.base_url, max_retries=max_retries, backoff=FAST, timeout_s=timeout_s
    ) as client:
        with pytest.raises(ApiError) as caught:
            await client.chat(ASK, stream=streamed)
    return caught.value


async def test_a_busy_server_is_asked_again_when_it_says() -> None:
    busy = answer(429, error_object("queue full", "rate_limit_error"), "retry-after: 0.3")
    async with serving(busy, stream(*HELLO)) as server, OpenAIClient(server.base_url, backoff=FAST) as client:
        began_s = time.perf_counter()
        got = await client.chat(ASK)
    assert got.text == "Hello"
    assert 0.3 <= time.perf_counter() - began_s < 1
    # Waiting to be let in is no part of the latency of the try that was.
    assert got.timing.e2e_s is not None
    assert got.timing.e2e_s < 0.3


async def test_retry_after_may_be_a_date_on_the_servers_clock() -> None:
    headers = ("date: Wed, 01 Jan 2025 00:00:00 GMT", "retry-after: Wed, 01 Jan 2025 00:00:07 GMT")
    async with serving(answer(429, {}, *headers)) as server:
        assert (await failure(server)).retry_after == 7


async def test_too_long_a_retry_after_is_an_error_at_once() -> None:
    async with serving(answer(429, error_object("quota", "rate_limit_error"), "retry-after: 3600")) as server:
        error = await failure(server, max_retries=5)
    assert (error.kind, error.attempts, error.retry_after, len(server.heads)) == ("rate_limited", 1, 3600, 1)


@pytest.mark.parametrize("status", [408, 409, 429, 500, 503])
async def test_passing_failures_are_tried_again(status: int) -> None:
    fails = answer(status, error_object("not now", "server_error"))
    async with (
        serving(fails, fails, stream(*HELLO)) as server,
        OpenAIClient(server.base_url, max_retries=2, backoff=FAST) as client,
    ):
        assert (await client.chat(ASK)).text == "Hello"
    assert len(server.heads) == 3


async def test_retries_end_and_say_what_the_server_said() -> None:
    async with serving(answer(503, error_object("engine\nrestarting", "server_error"))) as server:
        error = await failure(server, max_retries=2)
    assert (error.attempts, error.status, error.kind, error.retryable) == (3, 503, "server_error", True)
    assert "HTTP 503) after 3 tries: engine restarting; see the server's log" in str(error)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, "bad_request"), (401, "auth"), (403, "auth"), (404, "not_found"), (422, "bad_request")],
)
async def test_a_refusal_is_final_and_keeps_the_servers_words(status: int, kind: str) -> None:
    body = error_object("temperature is too high", "invalid_request_error", "temperature", "out_of_range")
    async with serving(answer(status, body)) as server:
        error = await failure(server, max_retries=5)
    assert (error.kind, error.status, error.retryable, len(server.heads)) == (kind, status, False, 1)
    assert (error.message, error.param, error.code) == (
        "temperature is too high",
        "temperature",
        "out_of_range",
    )


async def test_a_redirect_says_where_to_point_base_url() -> None:
    async with serving(answer(307, "", "location: https://elsewhere/v1")) as server:
        error = await failure(server)
    assert (error.kind, error.message) == (
        "bad_response",
        "redirects to https://elsewhere/v1; set base_url to that",
    )


async def test_a_reset_before_the_answer_is_tried_again() -> None:
    async with (
        serving(reset, cut(stream(HELLO[0], end=False)), stream(*HELLO)) as server,
        OpenAIClient(server.base_url, max_retries=2, backoff=FAST) as client,
    ):
        assert (await client.chat(ASK)).text == "Hello"
    assert len(server.heads) == 3


async def test_a_reset_without_retries_is_an_error() -> None:
    async with serving(reset) as server:
        error = await failure(server)
    assert (error.kind, error.status, error.attempts) == ("reset", 0, 1)


async def test_a_reused_connection_that_was_closed_costs_no_retry() -> None:
    # As llama-server does: it answers, and resets the connection when the next request comes in on it.
    async with (
        serving(stream(*HELLO), reset, stream(*HELLO)) as server,
        OpenAIClient(server.base_url, max_retries=0) as client,
    ):
        assert [(await client.chat(ASK)).text for _ in range(2)] == ["Hello", "Hello"]
    first, reused, fresh = server.connections
    assert first == reused != fresh


async def test_a_closed_connection_is_replaced_by_a_new_one_not_by_another_old_one() -> None:
    async with (
        serving(stream(0.05, *HELLO), stream(0.05, *HELLO), reset, stream(*HELLO)) as server,
        OpenAIClient(server.base_url, max_retries=0) as client,
    ):
        await asyncio.gather(client.chat(ASK), client.chat(ASK))
        await client.chat(ASK)
    assert server.connections[3] not in server.connections[:3]


async def test_a_reused_connection_is_replaced_only_once() -> None:
    async with (
        serving(stream(*HELLO), reset, reset, stream(*HELLO)) as server,
        OpenAIClient(server.base_url, max_retries=0) as client,
    ):
        await client.chat(ASK)
        with pytest.raises(ApiError, match="reset"):
            await client.chat(ASK)
    assert len(server.heads) == 3


@pytest.mark.parametrize("broken", [cut(stream(*HELLO[:2], end=False)), stream(*HELLO[:2])])
async def test_a_stream_that_breaks_is_never_asked_again(broken: Reply) -> None:
    async with serving(broken, stream(*HELLO)) as server:
        error = await failure(server, max_retries=5)
    assert (error.kind, error.retryable, len(server.heads)) == ("stream_broken", True, 1)
    assert error.timing is not None
    assert (error.timing.error_kind, error.timing.e2e_s, error.timing.status) == ("stream_broken", None, 200)
    assert len(error.timing.chunk_times_s) == 1


async def test_an_error_in_the_middle_of_a_stream_is_told() -> None:
    died = sse_event(error_object("engine died", "server_error"))
    async with serving(stream(HELLO[1], died, END)) as server:
        error = await failure(server, max_retries=5)
    assert (error.kind, error.message, len(server.heads)) == ("stream_broken", "engine died", 1)


async def test_an_error_at_the_start_of_a_stream_is_tried_again() -> None:
    died = sse_event({"error": {"message": "engine died", "code": 503}})
    async with (
        serving(stream(died, END), stream(*HELLO)) as server,
        OpenAIClient(server.base_url, backoff=FAST) as client,
    ):
        assert (await client.chat(ASK)).text == "Hello"


@pytest.mark.parametrize(
    "garbage",
    [
        answer(200, "<html>Welcome</html>"),
        answer(200, {"choices": []}),
        stream(),
        stream(b"data: {oops\n\n"),
        stream(b'data: {"hello": "world"}\n\n'),
        stream(b"\xff\xfe\x00", b"data: \xff\n\n"),
    ],
)
@pytest.mark.parametrize("streamed", [True, False])
async def test_garbage_is_an_error_that_shows_it_and_is_not_tried_again(
    garbage: Reply, streamed: bool
) -> None:
    async with serving(garbage) as server:
        error = await failure(server, max_retries=5, streamed=streamed)
    assert (error.kind, error.retryable, len(server.heads)) == ("bad_response", False, 1)


async def test_a_stream_that_is_given_up_is_hung_up() -> None:
    async with (
        serving(stream(b"data: oops\n\n", *([b": ping\n\n", 0.02] * 500))) as server,
        OpenAIClient(server.base_url) as client,
    ):
        with pytest.raises(ApiError, match="oops"):
            await client.chat(ASK)
        await asyncio.wait_for(server.disconnected.wait(), 5)


async def test_a_server_that_is_down_is_named() -> None:
    async with serving() as server:
        pass
    error = await failure(server, max_retries=1)
    assert (error.kind, error.attempts, error.status) == ("connect", 2, 0)
    assert server.base_url in str(error)
    assert "check base_url and that the server is up" in str(error)


async def test_a_silent_server_times_out_and_is_not_asked_again() -> None:
    async with serving(stream(HELLO[0], 30.0, end=False)) as server:
        error = await failure(server, max_retries=5, timeout_s=0.2)
    assert (error.kind, error.retryable, len(server.heads)) == ("timeout", True, 1)
    assert "no whole answer within 0.2 s" in str(error)


async def test_an_endpoint_without_the_models_route_says_not_found() -> None:
    async with (
        serving(answer(404, {"detail": "Not Found"})) as server,
        OpenAIClient(server.base_url) as client,
    ):
        with pytest.raises(ApiError) as caught:
            await client.model("m")
    assert (caught.value.kind, caught.value.message) == ("not_found", "Not Found")


async def test_an_error_crosses_processes_whole() -> None:
    async with serving(answer(429, error_object("full", "rate_limit_error"), "retry-after: 2")) as server:
        error = await failure(server)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.kind, copy.retry_after, copy.timing) == (
        str(error),
        "rate_limited",
        2,
        error.timing,
    )
